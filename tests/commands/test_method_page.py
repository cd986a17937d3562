"""What ``mmdistill methods NAME`` says of one method."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from mmdistill.cli import main
from mmdistill.commands.assigned import parse_assignments
from mmdistill.commands.method_page import SHOWN_BUDGETS, USUAL, domains_having, method_facts
from mmdistill.config import DistillConfig
from mmdistill.errors import UnknownNameError
from mmdistill.registry import DOMAIN_PACKAGES, get_domain, get_method

EVERY = [(name, key) for name in DOMAIN_PACKAGES for key in get_domain(name).methods]


@pytest.mark.parametrize(("name", "key"), EVERY, ids=["-".join(pair) for pair in EVERY])
def test_every_method_tells_its_settings_by_options_that_there_are(name: str, key: str) -> None:
    domain = get_domain(name)
    facts, method = method_facts(domain, key, ""), get_method(domain, key)
    assert facts[key] == f"{method.title}: {method.summary}"
    assert all(facts.values())
    options = {entry.name for entry in fields(DistillConfig)}
    told = {name.removeprefix("--").replace("-", "_") for name in facts if name.startswith("--") and " " not in name}
    assert told <= options
    if method.solve is None:
        groups = set(method.settings(10).optimizers)
        steps = {str(method.settings(budget).steps) for budget in SHOWN_BUDGETS[domain.budget]}
        assert all(number in facts["--steps"] for number in steps)
        known = {"labels": "labels' optimizer", "decoder": "decoder's optimizer", "objective": "objective's optimizer"}
        assert {known[group] for group in groups - {"codes"}} <= set(facts)
    else:
        assert "--steps" not in facts


@pytest.mark.parametrize(("name", "key"), EVERY, ids=["-".join(pair) for pair in EVERY])
def test_what_is_shown_of_settings_is_what_set_takes(name: str, key: str) -> None:
    domain = get_domain(name)
    facts, method = method_facts(domain, key, ""), get_method(domain, key)
    shown = {told.removeprefix("--set "): value for told, value in facts.items() if told.startswith("--set ")}
    shown |= dict(re.findall(r"--set (\w+)=(.*?)(?=, --|$)", facts.get("read, as usual", "")))
    for setting, value in shown.items():
        budget = SHOWN_BUDGETS[domain.budget][0]
        taken = parse_assignments([f"{setting}={value.partition(' at ')[0]}"], method.settings(budget), key)
        assert taken == {setting: getattr(method.settings(budget), setting)}


def test_settings_that_depend_on_the_budget_name_it() -> None:
    facts = method_facts(get_domain("image"), "DSA", "")
    assert facts["--steps"] == "1000 at ipc 1; 10000 at ipc 10; 50000 at ipc 50"
    assert facts["--inner-steps"] == "1 at ipc 1; 50 at ipc 10; 10 at ipc 50"
    assert facts["samples' optimizer (--lr)"] == "sgd, lr 0.1, momentum 0.5"
    assert facts["--init"] == "real"
    assert "--inner-lr 0.01" in facts[USUAL]
    assert not any("expert" in value for value in facts.values())
    assert "syn-batch" in facts[USUAL]
    assert "--set expert_adaptive=null" in method_facts(get_domain("image"), "MTT", "")[USUAL]
    assert "syn-batch" not in method_facts(get_domain("image"), "krr", "")[USUAL]  # which takes all samples
    assert "interactions" not in facts[USUAL]


def test_settings_of_a_data_set_and_of_its_short_schedule() -> None:
    image = get_domain("image")
    assert method_facts(image, "dm", "digits")["--steps"] == str(get_method(image, "dm", "digits").settings(1).steps)
    facts = method_facts(image, "dsa", "MNIST")
    short = get_method(image, "dsa", "mnist", "reduced")
    assert facts["  --real-batch"] == str(short.settings(1).real_batch)
    assert "  --augment" not in facts  # which is the same
    assert facts["other settings"] == "with --data digits"
    assert method_facts(image, "mtt", "cifar10")["published for"] == (
        "--protocol mtt --whiten mtt at ipc 1, 10; --protocol mtt at ipc 50"
    )
    assert method_facts(image, "rded", "")["--set candidates"] == "300"
    assert method_facts(get_domain("recsys"), "distill-cf", "")["short schedule"] == "--schedule reduced, for all data"


def test_the_command_shows_a_method_of_every_domain_that_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "krr"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in DOMAIN_PACKAGES if f"{name} (budget" in shown] == ["image", "graph", "text"]
    assert main(["methods", "krr", "--domain", "graph"]) == 0
    assert capsys.readouterr().out.startswith("graph (budget: --nodes)")
    assert main(["methods", "krr", "--data", "Cora"]) == 0
    assert capsys.readouterr().out.startswith("graph (budget: --nodes, --data Cora)")
    assert main(["methods", "--data", "cora"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("graph (budget")
    assert "\ntext" not in listed


def test_unknown_names_suggest_methods_and_domains(capsys: pytest.CaptureFixture[str]) -> None:
    domains = [get_domain(name) for name in DOMAIN_PACKAGES]
    with pytest.raises(UnknownNameError, match="unknown domain or method 'dsaa'; did you mean 'dsa'"):
        domains_having(domains, "dsaa", "")
    assert main(["methods", "dsa", "--data", "cifra10"]) == 2
    assert "did you mean 'cifar10'" in capsys.readouterr().err


def test_own_data_have_the_settings_of_any_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "pets" / name / "1.png")
    assert main(["methods", "dm", "--data", str(tmp_path / "pets")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("image (budget: --ipc, --data ")
    assert "text (budget" not in shown
    assert re.search(r"--steps +20000\n", shown)
    assert main(["methods", "dm", "--data", str(tmp_path / "none")]) == 2
