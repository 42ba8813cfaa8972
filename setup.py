"""Packaging for sepnb: every value comes from settings.ini, which nbdev reads too."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
research = cfg["research_requirements"].split()


class BuildWithWavetables(build_py):
    "An installed package carries the priors of `sepnb separate`, 20 kB; a checkout has them under artifacts/."

    def run(self):
        super().run()
        if not self.editable_mode:
            for path in sorted((here / "artifacts" / "weights" / "laptop").glob("*/wavetable-*.safetensors")):
                target = Path(self.build_lib) / "sepnb" / path.relative_to(here)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
    ],
    packages=find_packages(include=["sepnb", "sepnb.*"]),
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={"research": research, "dev": research + cfg["dev_requirements"].split()},
    cmdclass={"build_py": BuildWithWavetables},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        # nbdev links names in the documentation through this entry point
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
