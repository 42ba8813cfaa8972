"""A student of a WaveNet: the sinusoids that it hears, what it is told, and who learns."""
import pytest
import torch

from sepnb.audio import RATE
from sepnb.coverage import PITCHES, SAMPLES, hertz, items, scale_clips
from sepnb.student import Student, StudentConfig, Teacher, TeacherConfig, distilled, load_teacher, partials_of

SMALL = StudentConfig(2, 3, 8, 8, told=28, partials=3)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(config=SMALL):
    "One that has learned something: a new one passes its noise on"
    torch.manual_seed(0)
    model = Student(config)
    with torch.no_grad():
        [p.add_(0.3 * torch.randn(p.shape)) for p in model.parameters()]
    return model


def told(pitch, n=1): # place in PITCHES -> (n, 28), of the first class
    rows = torch.zeros(n, 28)
    rows[:, 0], rows[:, 4 + pitch] = 1, 1
    return rows


@pytest.mark.parametrize("place", [0, 11, len(PITCHES) - 1])
def test_partials_are_multiples_of_the_pitch(place):
    h = partials_of(torch.tensor([place]), 12, RATE, random())[0]
    f = hertz(PITCHES[place])
    for k in range(1, 13):
        for wave in (h[:, k - 1], h[:, 11 + k]):
            if k * f < RATE / 2:
                assert abs(torch.fft.rfft(wave).abs().argmax().item() - k * f) <= 1  # bins of 1 Hz
            else:
                assert not wave.any()


def test_partials_begin_together():
    "All of a clip are moved by the same time, so that one phase is drawn and not one for each partial"
    h = partials_of(torch.tensor([3]), 4, SAMPLES, random())[0]
    first = torch.atan2(h[:, 0], h[:, 4])
    for k in (2, 3, 4):
        assert torch.allclose(h[:, k - 1], (k * first).sin(), atol=1e-4)


def test_phases_are_drawn_for_every_clip():
    h = partials_of(torch.zeros(500, dtype=torch.long), 1, 1, random())[:, 0]
    phase = torch.atan2(h[:, 0], h[:, 1]) / (2 * torch.pi) % 1
    assert torch.histc(phase, 5, 0, 1).min() > 60  # 100 are expected


def test_it_hears_the_pitch_that_is_told():
    z, model = torch.randn(2, 64), tiny()
    for a, b in zip(model(z, told(5, 2), generator=random()), model(z, told(5, 2), torch.tensor([5, 5]), random())):
        assert torch.equal(a, b)
    assert not torch.equal(model(z, told(5, 2), generator=random())[0], model(z, told(6, 2), generator=random())[0])


def test_told_nothing_it_plays_any_pitch():
    "By what its first network hears beside the noise"
    model = tiny(StudentConfig(1, 1, 8, 8, partials=1))
    z = torch.zeros(200, RATE // 10)
    seen = []
    model.flows[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 1]))
    model(z, generator=random())
    assert len({int(torch.fft.rfft(w).abs().argmax()) for w in seen[0]}) > 15


def test_without_partials_pitch_is_nothing():
    z, model = torch.randn(2, 64), tiny(StudentConfig(2, 3, 8, 8, partials=0))
    a, b = (model(z, pitches=torch.full((2,), p), generator=random())[0] for p in (0, 20))
    assert torch.equal(a, b)
    model = tiny(StudentConfig(2, 3, 8, 8, partials=1))
    a, b = (model(z, pitches=torch.full((2,), p), generator=random())[0] for p in (0, 20))
    assert not torch.equal(a, b)


def test_clips_follow_from_a_generator():
    model = tiny()
    a, b = (model.sample(2, 100, random(), told=told(0, 2)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a[0], a[1]) and a.isfinite().all()


def test_the_student_learns_and_the_teacher_does_not():
    model, (teacher, _) = tiny(), load_teacher("scale", "smoke", told=True)
    rows = torch.stack([items("scale", "train", True)[i] for i in range(4)])
    loss = distilled(teacher)
    loss(model, rows, random()).backward()
    assert loss(model, rows, random()).item() == loss(model, rows, random()).item()
    for flow in model.flows:
        assert all(p.grad is not None for p in flow.parameters()) and any(p.grad.abs().max() > 0 for p in flow.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_without_weight_the_teacher_has_no_say():
    rows = torch.stack([items("scale", "train", True)[i] for i in range(4)])
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        teacher = Teacher(TeacherConfig(3, 8, 8, told=28))
        losses.append([distilled(teacher, weight)(tiny(), rows, random()).item() for weight in (0.0, 1.0)])
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_told_nothing_it_learns_with_the_pitch_of_the_recording(monkeypatch):
    torch.manual_seed(1)
    model, teacher, seen = tiny(StudentConfig(2, 3, 8, 8, partials=3)), Teacher(TeacherConfig(3, 8, 8)), []
    forward = Student.forward
    monkeypatch.setattr(Student, "forward", lambda self, z, told=None, pitches=None, generator=None: seen.append(pitches) or forward(self, z, told, pitches, generator))
    clips = scale_clips("valid")
    distilled(teacher)(model, clips.waves[:50], random())
    assert seen[0].tolist() == clips.pitches[:50].tolist()
