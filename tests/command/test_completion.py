import subprocess

import pytest

from beit import cli

ASK = """
COMP_WORDS=({words} "") COMP_CWORD={place}
COMP_WORDS[COMP_CWORD]={last}
$(complete -p beit | sed 's/.* -F \\([^ ]*\\).*/\\1/') beit
echo ${{COMPREPLY[*]}}
"""


def test_bash_completes_verbs_options_choices_and_presets(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--print_completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(line: str) -> list[str]:
        words, _, last = line.rpartition(" ")
        ask = ASK.format(words=words, last=last or "''", place=len(words.split()))
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout.split()

    assert completed("beit pre") == ["pretrain", "predict", "presets"]
    assert completed("beit visualise to") == ["tokens"]
    assert completed("beit visualise tokens --mod") == ["--model"]  # as spelled, not as the field
    assert completed("beit pretrain --target.kind ") == ["tokens", "pixels", "features"]
    assert completed("beit train-tokenizer --kind ") == ["vqkd", "dvae"]
    assert {"cifar10-cpu", "cifar10-gpu"} == {*completed("beit pretrain --preset cifar10-")}


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--print_completion=bsh"]) == 2
    assert "no completion for 'bsh'; did you mean bash? Expected one of" in capsys.readouterr().err
    assert cli.main(["--print_completion"]) == 2
    assert "--print_completion needs a value" in capsys.readouterr().err
