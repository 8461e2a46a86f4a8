"""The packages, among them configs/, which stays at the top level of the repository."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["qam_lightning", "qam_lightning.*"]),
        "qam_lightning.configs",
    ],
    package_dir={"qam_lightning.configs": "configs"},
    package_data={
        "qam_lightning": ["py.typed"],
        "qam_lightning.configs": ["**/*.yaml"],
        "qam_lightning.reports": ["published.csv.gz", "published_license.txt"],
    },
)
