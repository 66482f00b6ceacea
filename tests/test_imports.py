"""What libraries log while they are imported is hidden, and what they log later is shown."""

import logging
import subprocess
import sys

import pytest

from lightning_distill.imports import import_quietly, quiet_start

NOISY = """
import logging
log = logging.getLogger("noisy")
log.warning("a kernel is missing")
log.error("broken")
def work():
    log.warning("while working")
"""


def test_only_errors_of_an_import_are_logged(tmp_path, monkeypatch, caplog):
    (tmp_path / "noisy_library.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    import_quietly("noisy_library").work()
    assert caplog.messages == ["broken", "while working"]


def test_what_was_disabled_before_stays_disabled(monkeypatch):
    monkeypatch.setattr(logging.root.manager, "disable", logging.ERROR)
    with quiet_start():
        assert logging.root.manager.disable == logging.ERROR
    assert logging.root.manager.disable == logging.ERROR


@pytest.mark.slow
def test_the_names_of_the_package_are_imported_without_a_line():
    code = "import lightning_distill as ld\nfor name in ld.__all__: getattr(ld, name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
