"""The store over real git repositories: what it promises of saves, advances, refusals, kills and damage."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import invariants
import pytest
from invariants import git

from lab import ledger
from lab.checkout import Checkout
from lab.ledger import Row, SetupError, Status
from lab.store import Store

START = "print(1)\n"
COPY = ".git/autoresearch/nov23.tsv"  # the rows as they were appended
READING = {"rev-parse", "cat-file", "ls-tree", "merge-base", "for-each-ref", "status"}


@pytest.fixture(autouse=True)
def plain_git(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No configuration but a repository's own, whoever runs the tests."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("fresh") / "checkout")


@pytest.fixture
def root(fresh: Path, tmp_path: Path) -> Path:
    """A repository with one commit and no session."""
    return copy(fresh, tmp_path / "checkout")


def copy(template: Path, to: Path) -> Path:
    return Path(shutil.copytree(template, to, symlinks=True))


def make_repository(root: Path) -> Path:
    root.mkdir()
    subprocess.run(["git", "init", "-q", "-b", "main", "--template=", str(root)], check=True)
    git(root, "config", "user.name", "A Person")
    git(root, "config", "user.email", "person@example.org")
    (root / "train.py").write_text(START)
    (root / "program.md").write_text("find something\n")
    (root / "results.tsv").write_text(ledger.HEADER)
    (root / "other.py").write_text("a = 1\n")
    (root / "lab").mkdir()
    (root / "lab" / "part.py").write_text("b = 1\n")
    (root / ".gitignore").write_text("runs/\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "start")
    return root


@contextmanager
def opened(root: Path, tag: str | None = None, today: str = "nov23") -> Iterator[Store]:
    """A store that has written nothing yet."""
    store = Store.open(root, tag, today)
    try:
        yield store
    finally:
        store.release()


@contextmanager
def open_session(root: Path, tag: str | None = None) -> Iterator[Store]:
    with opened(root, tag) as store:
        store.begin()
        store.recover()
        yield store


def start(root: Path, tag: str | None = None) -> list[str]:
    """What one start says."""
    with opened(root, tag) as store:
        return [*store.begin(), *store.recover()]


def experiment(store: Store, keep: bool, code: str | None = None) -> str:
    """One turn of the loop, as agent.py makes it, with a verdict given beforehand."""
    number = store.next_number
    code = code or (f"print({number + 1})\n" if number else store.train_code())
    commit = store.save(number, code, f"experiment {number}", "because")
    status = Status.KEEP if keep else Status.DISCARD
    store.append(Row(commit[:10], 1.0 - number / 100, status=status, experiment=number, description="x"))
    if keep:
        store.advance(commit)
    return commit


def snapshot(root: Path) -> dict[str, bytes]:
    """Every byte below a folder, the empty files of our locks aside."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*")
            if path.is_file() and path.name != "autoresearch.lock" and path.parent != root / ".git" / "autoresearch"}


def refs(root: Path, prefix: str = "refs/") -> dict[str, str]:
    lines = git(root, "for-each-ref", "--format=%(refname) %(objectname)", prefix).splitlines()
    return dict(line.split() for line in lines)


# -- a session ----------------------------------------------------------------------------------------------------


def test_keeps_advance_the_branch_and_discards_stay_readable(root: Path) -> None:
    with open_session(root) as store:
        for keep in (True, False, True):
            experiment(store, keep)
            invariants.check(root)
        assert git(root, "rev-parse", "HEAD") == refs(root)["refs/autoresearch/nov23/2"]
        assert [store.code(n) for n in range(3)] == [START, "print(2)\n", "print(3)\n"]
        assert (root / "train.py").read_text() == "print(3)\n"
        assert git(root, "log", "-1", "--format=%B") == "experiment 2\n\nbecause"


def test_a_keep_of_an_earlier_train_py_returns_to_it_by_a_commit_of_its_own(root: Path) -> None:
    with open_session(root) as store:
        first, second = experiment(store, True), experiment(store, True)
        store.append(Row(first[:10], 0.9, status=Status.KEEP, experiment=0, seed=1))
    with open_session(root) as store:  # it died before it had advanced
        assert git(root, "rev-parse", "HEAD^") == second and (root / "train.py").read_text() == START
        invariants.check(root)
        head = git(root, "rev-parse", "HEAD")
        store.advance(first)
        assert store.recover() == [] and git(root, "rev-parse", "HEAD") == head, "once is enough"
        experiment(store, True)
        invariants.check(root)


def test_a_candidate_changes_neither_head_nor_work_tree_nor_index(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        before = snapshot(root)
        commit = store.save(1, "print(2)\n", "try", "")
        after = snapshot(root)
        new = set(after) - set(before)
        assert {name for name in before if before[name] != after[name]} == set()
        assert all(name.startswith((".git/objects", ".git/refs/autoresearch/nov23")) for name in new), new
        assert git(root, "rev-parse", f"{commit}^") == git(root, "rev-parse", "HEAD")


def test_a_candidate_carries_program_md_and_the_rows_so_far_and_the_close_commits_the_last(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        (root / "program.md").write_text("now look elsewhere\n")
        commit = experiment(store, True)
        changed = git(root, "diff", "--name-only", f"{commit}^", commit)
        assert changed.split() == ["program.md", "results.tsv", "train.py"]
        assert git(root, "show", f"{commit}:results.tsv").count("\n") == 1  # the header and the first row
        rows = (root / "results.tsv").read_text()
        closed = store.close()
        assert git(root, "show", f"{closed}:program.md") == "now look elsewhere"
        assert git(root, "show", f"{closed}:results.tsv") == rows.strip()
        assert git(root, "show", f"{closed}:other.py") == "a = 1"
        invariants.check(root)


def test_a_work_tree_and_index_of_two_commits_ago_are_still_ours(root: Path) -> None:
    """A disk that failed once while a keep advanced leaves them behind; the close is a commit on top."""
    with open_session(root) as store:
        experiment(store, True)
        old = (root / "train.py").read_text()
        experiment(store, True)
        new = (root / "train.py").read_text()
        assert store.close() and old != new
    (root / "train.py").write_text(old)
    git(root, "add", "train.py")
    with open_session(root):
        assert (root / "train.py").read_text() == new
    invariants.check(root)


def test_closing_leaves_a_clean_tree_and_says_what_the_session_brought(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        kept = experiment(store, True)
        experiment(store, False)
        assert store.close() and not store.close()
    assert git(root, "status", "--porcelain") == ""
    assert git(root, "rev-parse", "HEAD^") == kept
    subject = git(root, "log", "-1", "--format=%s")
    assert subject == "Close session nov23: 3 experiments, 2 kept, val_bpb 1.000000 -> 0.990000"
    invariants.check(root)


def test_the_same_start_continues_after_a_closing_commit(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        store.close()
    with opened(root, None, "dec01") as store:
        assert (store.tag, store.new, store.begin(), store.recover()) == ("nov23", False, [], [])
        experiment(store, False)
        experiment(store, True)
        store.close()
    invariants.check(root)
    assert git(root, "status", "--porcelain") == ""


def test_rows_of_an_earlier_program_with_fewer_columns_are_refused_and_stay(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        copy = store.copy
        store.close()
    lines = ["\t".join(line.split("\t")[:-1]) for line in copy.read_text().splitlines()]
    copy.write_text("\n".join(lines) + "\n")
    with opened(root, None, "dec01") as store, pytest.raises(SetupError, match="other columns.*--tag nov23-2"):
        store.rows()
    assert copy.read_text() == "\n".join(lines) + "\n"


def test_a_new_session_starts_empty_from_the_incumbent_and_the_old_rows_stay(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        experiment(store, True)
        store.close()
    with open_session(root, "second") as store:
        assert (root / "results.tsv").read_text() == ledger.HEADER and store.rows() == []
        assert store.train_code() == "print(2)\n"
        experiment(store, True)
        (tag, rows), = store.earlier_sessions().items()
        assert tag != "second" and [row.experiment for row in rows] == [0, 1]
    invariants.check(root)
    git(root, "merge-base", "--is-ancestor", "autoresearch/nov23", "autoresearch/second")


def test_a_session_that_was_not_closed_is_left_only_with_its_rows_committed(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
    with pytest.raises(SetupError, match="rows that no commit holds") as refusal:
        start(root, "second")
    follow(root, str(refusal.value))
    start(root, "second")
    assert git(root, "show", "autoresearch/nov23:results.tsv").count("\n") == 1


def test_a_clone_elsewhere_goes_on_with_the_kept_ones(root: Path, tmp_path: Path) -> None:
    with open_session(root) as store:
        for keep in (True, True, False):
            experiment(store, keep)
        store.close()
    git(root, "clone", "-q", f"file://{root}", str(tmp_path / "clone"))
    clone = tmp_path / "clone"
    assert start(clone) == ["3 experiments had lost their refs"]
    with opened(clone) as store:
        assert store.code(1) == "print(2)\n" and store.codes([1, 2]) == {1: "print(2)\n"}
        with pytest.raises(SetupError, match="lost the train.py"):
            store.code(2)


def test_a_name_of_today_that_is_taken_gets_a_number(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        store.close()
    git(root, "switch", "-q", "main")
    with open_session(root) as store:
        assert store.tag == "nov23-2"


def test_other_branches_files_and_staged_work_are_never_touched(root: Path) -> None:
    git(root, "branch", "mine")
    git(root, "tag", "v1")
    (root / "notes.txt").write_text("untracked")
    before = refs(root)
    with open_session(root) as store:
        for keep in (True, True, False):
            experiment(store, keep)
        (root / "staged.py").write_text("mine\n")  # staged while the loop runs
        git(root, "add", "staged.py")
        experiment(store, True)
        store.close()
        assert git(root, "diff", "--cached", "--name-only") == "staged.py"
    assert {name: commit for name, commit in refs(root).items() if "autoresearch" not in name} == before
    assert (root / "notes.txt").read_text() == "untracked"


@pytest.mark.parametrize("autocrlf", ["true", "input"])
def test_bytes_are_kept_exactly(root: Path, autocrlf: str) -> None:
    git(root, "config", "core.autocrlf", autocrlf)
    with open_session(root) as store:
        experiment(store, True)
        for code in ("a = 1\r\nb = 2\r\n", "a = '\udce9\udcff'\n", "no newline", "\ufeffa = 1\n", "é\t \n\n"):
            experiment(store, True, code)
            number = len(store.rows()) - 1
            assert store.code(number) == store.train_code() == code
            assert (root / "train.py").read_bytes() == code.encode("utf-8", "surrogateescape")
            assert store.recover() == []


def test_text_from_a_model_is_inert(root: Path) -> None:
    before = refs(root, "refs/heads")
    texts = ["--help", "-m x", "refs/heads/main", "@{-1}", "$(touch pwned)", "a\0b", "\x1b[31mred", "", "#comment",
             "x\n\nSigned-off-by: y", "\udcff", "'; rm -rf . #", "HEAD:train.py", "a\n" * 3000, "é" * 20000]
    with open_session(root) as store:
        experiment(store, True)
        for number, text in enumerate(texts, 1):
            head = git(root, "rev-parse", "HEAD")
            commit = store.save(number, text, text, text)
            assert store.code_of(commit) == text and git(root, "rev-parse", "HEAD") == head
            assert "\x1b" not in git(root, "cat-file", "commit", commit)
            store.advance(commit)
        store.close()
        assert len(refs(root)) == len(before) + 2 + len(texts)
    assert before.items() <= refs(root, "refs/heads").items() and not (root / "pwned").exists()
    assert git(root, "status", "--porcelain") == ""


def test_train_py_is_replaced_whole_and_keeps_its_mode(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        (root / "train.py").chmod(0o600)
        os.link(root / "train.py", root / "reader")  # whoever has it open reads the old text to its end
        experiment(store, True)
    assert (root / "reader").read_text() == START
    assert (root / "train.py").stat().st_mode & 0o777 == 0o600


def test_ctrl_c_reaches_no_git_command(root: Path) -> None:
    alias = f"alias.group=!{sys.executable} -c 'import os; print(os.getpgrp())'"
    with open_session(root) as store:
        assert int(store.here.git("-c", alias, "group")) != os.getpgrp()


def test_hooks_and_signing_of_the_user_do_not_run(root: Path) -> None:
    hooks = root / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("pre-commit", "reference-transaction", "post-index-change", "commit-msg"):
        (hooks / name).write_text("#!/bin/sh\ntouch ran\nexit 1\n")
        (hooks / name).chmod(0o755)
    git(root, "config", "commit.gpgsign", "true")
    git(root, "config", "core.fsmonitor", "exit 1; touch ran")
    with open_session(root) as store:
        experiment(store, True)
        experiment(store, True)
        store.close()
    assert not (root / "ran").exists()


def test_a_worktree_has_a_session_of_its_own(root: Path, tmp_path: Path) -> None:
    git(root, "worktree", "add", "-q", "-b", "second", str(tmp_path / "tree"))
    with open_session(root) as first, open_session(tmp_path / "tree") as second:
        assert (first.tag, second.tag) == ("nov23", "nov23-2")
        for store in (first, second):
            experiment(store, True)
            experiment(store, True)
            store.close()
            invariants.check(store.root)


@pytest.mark.parametrize("has_identity", [True, False])
def test_the_commits_are_autoresearch_s(root: Path, has_identity: bool) -> None:
    if not has_identity:
        git(root, "config", "--unset", "user.name")
        git(root, "config", "--unset", "user.email")
        git(root, "config", "user.useConfigOnly", "true")
    with open_session(root) as store:
        experiment(store, True)
    assert git(root, "log", "-1", "--format=%an <%ae>") == "autoresearch <autoresearch@localhost>"


def test_a_start_from_a_git_hook_stays_in_its_own_repository(root: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_repository(tmp_path / "other")
    before = snapshot(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    with open_session(root) as store:
        experiment(store, True)
        experiment(store, True)
        store.close()
    assert snapshot(other) == before
    monkeypatch.undo()
    invariants.check(root)


def test_an_edit_of_train_py_while_the_loop_runs_is_left_in_place(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        (root / "train.py").write_text("mine\n")
        commit = store.save(1, "print(2)\n", "better", "")
        assert "edited by hand" in store.advance(commit)
        assert (root / "train.py").read_text() == "mine\n" and git(root, "rev-parse", "HEAD") == commit


def test_a_commit_made_by_hand_while_a_trial_runs_is_joined(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        commit = store.save(1, "print(2)\n", "better", "")
        (root / "program.md").write_text("steer\n")
        git(root, "commit", "-q", "-am", "steer")
        store.append(Row(commit, 0.9, status=Status.KEEP, experiment=1))
        store.advance(commit)
        assert git(root, "show", "HEAD:program.md") == "steer" and git(root, "show", "HEAD:train.py") == "print(2)"
        assert store.recover() == []
        invariants.check(root)


def test_a_branch_switched_by_hand_stops_the_loop_and_is_left_alone(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        commit = store.save(1, "print(2)\n", "better", "")
        git(root, "checkout", "-q", "-f", "main")
        before = snapshot(root)
        for call in (lambda: store.advance(commit), store.close, lambda: store.save(2, "x", "x")):
            with pytest.raises(SetupError, match="git switch autoresearch/nov23"):
                call()
        assert snapshot(root) == before


def test_an_editor_that_holds_the_index_does_not_stop_the_loop(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        (root / ".git" / "index.lock").touch()
        commit = experiment(store, True)
        assert git(root, "rev-parse", "HEAD") == commit
        (root / ".git" / "index.lock").unlink()
        experiment(store, True)
        invariants.check(root)


# -- refused starts -----------------------------------------------------------------------------------------------


def test_a_second_agent_is_refused_until_the_first_process_ends(root: Path) -> None:
    code = "import sys, time; from pathlib import Path; from lab.store import Store\n" \
           "store = Store.open(Path(sys.argv[1]), None, 'nov23'); print('open', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE,
                             cwd=Path(__file__).parent.parent)
    assert first.stdout and first.stdout.readline() == b"open\n"
    with pytest.raises(SetupError, match="another agent"):
        Store.open(root, None, "nov23")
    first.kill()
    first.wait()
    Store.open(root, None, "nov23").release()


def dirty(root: Path) -> None:
    (root / "other.py").write_text("a = 2\n")


def staged(root: Path) -> None:
    (root / "more.py").write_text("c = 1\n")
    git(root, "add", "more.py")


def edited_train(root: Path) -> None:
    (root / "train.py").write_text("mine\n")


def staged_train(root: Path) -> None:
    edited_train(root)
    git(root, "add", "train.py")
    (root / "train.py").write_text((git(root, "show", "HEAD:train.py")) + "\n")


def executable(root: Path) -> None:
    (root / "other.py").chmod(0o755)


def without_train(root: Path) -> None:
    git(root, "rm", "-q", "train.py")
    git(root, "commit", "-q", "-m", "no train.py")
    (root / "train.py").write_text("mine\n")


def own_rows(root: Path) -> None:
    (root / "results.tsv").write_text(ledger.HEADER + ledger.format_row(Row("abc", 1.0, status=Status.KEEP)))


def unborn(root: Path) -> None:
    git(root, "checkout", "-q", "--orphan", "empty")


def damaged_head(root: Path) -> None:
    (root / ".git" / "HEAD").write_text("")


def no_repository(root: Path) -> None:
    shutil.rmtree(root / ".git")


def folder(root: Path) -> None:
    (root / "results.tsv").unlink()
    (root / "results.tsv").mkdir()


BEFORE = [(dirty, "other.py"), (staged, "more.py"), (edited_train, "train.py"), (staged_train, "train.py"),
          (executable, "other.py"), (folder, "Is a directory: .*results.tsv"), (without_train, "git add train.py"),
          (own_rows, "rows that no commit holds"), (unborn, "no commit yet"), (damaged_head, "> .git/HEAD"),
          (no_repository, "git init")]


@pytest.mark.parametrize(("harm", "said"), BEFORE, ids=[harm.__name__ for harm, _ in BEFORE])
def test_a_refused_start_is_one_line_and_changes_nothing(root: Path, harm: Callable[[Path], None], said: str) -> None:
    harm(root)
    before = snapshot(root)
    with pytest.raises((SetupError, OSError), match=said) as refusal:
        Store.open(root, None, "nov23")
    assert "\n" not in str(refusal.value)
    assert snapshot(root) == before


def test_a_branch_whose_name_is_in_the_way_is_named_by_git(root: Path) -> None:
    git(root, "branch", "autoresearch")
    with opened(root) as store, pytest.raises(SetupError, match="'refs/heads/autoresearch' exists"):
        store.begin()
    assert git(root, "status", "--porcelain") == "" and git(root, "symbolic-ref", "HEAD") == "refs/heads/main"


@pytest.mark.parametrize("harm", [dirty, staged, edited_train, staged_train, executable])
def test_uncommitted_work_in_a_session_is_refused_and_untouched(root: Path, harm: Callable[[Path], None]) -> None:
    with open_session(root) as store:
        experiment(store, True)
        experiment(store, True)
    harm(root)
    before = snapshot(root)
    for tag in (None, "nov23", "another"):
        with pytest.raises(SetupError, match="uncommitted changes"):
            Store.open(root, tag, "nov23")
    assert snapshot(root) == before


def test_a_tag_that_cannot_name_a_branch_is_refused(root: Path) -> None:
    before = snapshot(root)
    for tag in ("-x", "--help", "a b", "a..b", "a.lock", "", "../x", "a/b", "x~1", "é", "a" * 300):
        with pytest.raises(SetupError, match="cannot name a session"):
            Store.open(root, tag, "nov23")
    assert snapshot(root) == before


def test_a_session_that_is_not_checked_out_is_refused_with_the_command(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        store.close()
    git(root, "switch", "-q", "main")
    with pytest.raises(SetupError, match="git switch autoresearch/nov23"):
        Store.open(root, "nov23", "nov23")


def test_opening_changes_nothing_before_begin(root: Path) -> None:
    before = snapshot(root)
    with opened(root) as store:
        assert store.new and store.tag == "nov23" and store.rows() == []
    assert snapshot(root) == before


def test_a_detached_head_starts_a_session(root: Path) -> None:
    git(root, "checkout", "-q", "--detach")
    with open_session(root) as store:
        experiment(store, True)
    invariants.check(root)


def test_a_bare_repository_is_refused(root: Path, tmp_path: Path) -> None:
    git(root, "clone", "-q", "--bare", str(root), str(tmp_path / "bare"))
    with pytest.raises(SetupError, match="must be run in a work tree"):
        Store.open(tmp_path / "bare", None, "nov23")


# -- damage -------------------------------------------------------------------------------------------------------


def put(name: str, data: bytes = b"") -> Callable[[Path], None]:
    """Damage that leaves these bytes in a file."""
    def harm(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return harm


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def tear_row(root: Path) -> None:
    with open(root / "results.tsv", "ab") as file:
        file.write(b"deadbeef\t0.9\t1")


def tear_copy(root: Path) -> None:
    with open(root / COPY, "ab") as file:
        file.write(b"deadbeef\t0.9\t1")


def row_in_copy_alone(root: Path) -> None:
    """A kill between the two writes of a row."""
    with opened(root) as store:
        commit = store.save(3, "print(9)\n", "x", "")
    ledger.append(root / COPY, Row(commit, 1.5, status=Status.DISCARD, experiment=3))


def damage_copy(root: Path) -> None:
    data = (root / COPY).read_bytes()
    (root / COPY).write_bytes(data.replace(b"discard", b"disc\0rd"))


def zeros_after_rows(root: Path) -> None:
    with open(root / "results.tsv", "ab") as file:
        file.write(bytes(300))


def damage_middle_row(root: Path) -> None:
    lines = (root / "results.tsv").read_bytes().split(b"\n")
    lines[1] = bytes(len(lines[1]))
    (root / "results.tsv").write_bytes(b"\n".join(lines))


def keep_without_advance(root: Path) -> None:
    with opened(root) as store:
        commit = store.save(3, "print(9)\n", "better", "")
        store.append(Row(commit, 0.5, status=Status.KEEP, experiment=3))


def advance_without_tree(root: Path) -> None:
    keep_without_advance(root)
    git(root, "update-ref", "refs/heads/autoresearch/nov23", refs(root)["refs/autoresearch/nov23/3"])


def head_behind(root: Path) -> None:
    git(root, "update-ref", "refs/heads/autoresearch/nov23", "HEAD^")
    git(root, "reset", "-q")


def empty_object(name: str) -> Callable[[Path], None]:
    def harm(root: Path) -> None:
        commit = git(root, "rev-parse", name)
        path = root / ".git/objects" / commit[:2] / commit[2:]
        path.chmod(0o644)
        path.write_bytes(b"")
    return harm


def stray_files(root: Path) -> None:
    put(".train.py.new", b"half")(root)
    put(".git/objects/ab/tmp_obj_x", b"half")(root)
    put(".git/autoresearch.lock", b"")(root)


def both_copies_reversed(root: Path) -> None:
    (root / COPY).unlink()
    lines = (root / "results.tsv").read_bytes().splitlines(keepends=True)
    (root / "results.tsv").write_bytes(b"".join(lines[:1] + lines[:0:-1]))


BRANCH = ".git/refs/heads/autoresearch/nov23"
DAMAGE = {
    "stale index.lock": put(".git/index.lock"), "stale HEAD.lock": put(".git/HEAD.lock"),
    "stale packed-refs.lock": put(".git/packed-refs.lock"), "stale packed-refs.new": put(".git/packed-refs.new"),
    "stale branch lock": put(BRANCH + ".lock"), "stale candidate lock": put(".git/refs/autoresearch/nov23/3.lock"),
    "missing candidate": remove(".git/refs/autoresearch/nov23/1"),
    "torn row": tear_row, "torn row in our copy": tear_copy, "zeros after rows": zeros_after_rows,
    "row in our copy alone": row_in_copy_alone,
    "empty results.tsv": put("results.tsv"), "missing results.tsv": remove("results.tsv"),
    "rows cut off": put("results.tsv", ledger.HEADER.encode()), "damaged row": damage_middle_row,
    "damaged header": put("results.tsv", b"comm"), "keep without advance": keep_without_advance,
    "advance without tree": advance_without_tree, "empty train.py": put("train.py"),
    "missing train.py": remove("train.py"), "head behind the rows": head_behind, "stray files": stray_files,
    "our copy of the rows deleted": remove(COPY),
}

# What no kill and no power cut leaves behind: the start names a command that mends it.
MENDED_BY_COMMAND = {
    "empty branch": put(BRANCH), "zeroed branch": put(BRANCH, bytes(41)), "missing branch": remove(BRANCH),
    "branch at nothing": put(BRANCH, b"1" * 40 + b"\n"),
    "empty HEAD": put(".git/HEAD"), "zeroed HEAD": put(".git/HEAD", bytes(40)),
    "damaged copy of the rows": damage_copy, "both copies of the rows changed": both_copies_reversed,
}

# The start passes on what git says, and changes nothing.
SAID_BY_GIT = {
    "empty index": put(".git/index"), "garbage index": put(".git/index", b"DIRC" + bytes(range(256)) * 3),
    "zeroed index": put(".git/index", bytes(500)), "missing index": remove(".git/index"),
    "empty tree": empty_object("HEAD^{tree}"), "empty commit": empty_object("HEAD"),
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session at rest: baseline, keep, discard; its closing commit is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        root = make_repository(tmp_path_factory.mktemp("session") / "checkout")
        with open_session(root) as store:
            for keep in (True, True, False):
                experiment(store, keep)
            store.close()
    return root


@pytest.fixture
def rested(session: Path, tmp_path: Path) -> Path:
    return copy(session, tmp_path / "rested")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_repaired_without_a_person_and_no_row_is_lost(rested: Path, kind: str) -> None:
    rows = ledger.read(rested / "results.tsv")
    DAMAGE[kind](rested)
    with opened(rested, None, "dec01") as store:
        foreseen = store.rows()
        store.begin()
        done = store.recover()
        assert all(line and "\n" not in line for line in done)
        assert store.tag == "nov23" and store.rows() == foreseen and foreseen[:3] == rows
        invariants.check(rested)
        assert store.recover() == []
        experiment(store, True)
        store.close()
        invariants.check(rested)


@pytest.mark.parametrize("kind", MENDED_BY_COMMAND)
def test_other_damage_is_one_line_whose_command_mends_it(rested: Path, kind: str) -> None:
    rows = ledger.read(rested / "results.tsv")
    MENDED_BY_COMMAND[kind](rested)
    before = snapshot(rested)
    with pytest.raises(SetupError) as refusal:
        start(rested)
    assert snapshot(rested) == before
    follow(rested, str(refusal.value))
    start(rested)
    assert ledger.read(rested / "results.tsv") == rows
    invariants.check(rested)


def follow(root: Path, message: str) -> None:
    """Do what a refusal says: its first command, as a person would fill it in."""
    assert "\n" not in message and len(message) < 400
    command = re.search("`([^`]+)`", message)
    assert command, message
    words = command[1].replace("BRANCH", "autoresearch/nov23").replace("NAME", "train.py")
    subprocess.run(["sh", "-c", words], cwd=root, check=True, capture_output=True)


@pytest.mark.parametrize("kind", SAID_BY_GIT)
def test_damage_by_hand_is_one_line_and_changes_nothing(rested: Path, kind: str) -> None:
    SAID_BY_GIT[kind](rested)
    before = snapshot(rested)
    with pytest.raises(SetupError) as refusal:
        start(rested)
    assert "\n" not in str(refusal.value) and snapshot(rested) == before
    if "index" in kind:
        (rested / ".git/index").unlink(missing_ok=True)
        git(rested, "reset", "-q")
        start(rested)
        invariants.check(rested)


def test_a_lost_incumbent_stops_in_one_line(rested: Path) -> None:
    git(rested, "update-ref", "refs/heads/autoresearch/nov23", "HEAD~2")
    empty_object("refs/autoresearch/nov23/1")(rested)
    git(rested, "reset", "-q", "--hard")
    with opened(rested) as store, pytest.raises(SetupError, match="git fsck") as refusal:
        store.recover()
    assert "\n" not in str(refusal.value)


def test_a_lock_of_a_git_that_is_at_work_is_left_alone(rested: Path) -> None:
    (rested / ".git/index.lock").touch()
    at_work = subprocess.Popen(["git", "cat-file", "--batch"], cwd=rested, stdin=subprocess.PIPE)
    with opened(rested) as store:
        with pytest.raises(SetupError, match="another git command"):
            store.recover()
        assert (rested / ".git/index.lock").exists()
        at_work.communicate()
        assert store.recover() == ["removed index.lock, which a killed git had left"]


def test_rows_of_a_damaged_file_are_kept_aside(rested: Path) -> None:
    for name in ("results.tsv.edited", "results.tsv.edited-2"):
        damage_middle_row(rested)
        damaged = (rested / "results.tsv").read_bytes()
        said = f"results.tsv was changed from outside: put its 3 rows back; the other file is {name}"
        assert start(rested) == [said]
        assert (rested / name).read_bytes() == damaged


# -- numbers, trials in flight, work trees -----------------------------------------------------------------------


def test_a_row_written_while_another_branch_is_checked_out_comes_back(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        commit = store.save(1, "print(2)\n", "better", "")
        git(root, "checkout", "-q", "-f", "main")
        before = snapshot(root)
        with pytest.raises(SetupError, match="git switch autoresearch/nov23.*no row is lost"):
            store.append(Row(commit, 0.9, status=Status.KEEP, experiment=1))
        assert snapshot(root) == before
    git(root, "switch", "-q", "autoresearch/nov23")
    with open_session(root) as store:
        assert [row.experiment for row in store.rows()] == [0, 1]
        assert store.train_code() == "print(2)\n"
    invariants.check(root)


def test_no_candidate_is_overwritten_while_its_trial_runs(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        running = store.save(store.next_number, "print(2)\n", "its trial runs")
        with pytest.raises(SetupError):
            store.save(1, "print(3)\n", "another")
        assert refs(root)["refs/autoresearch/nov23/1"] == running and store.next_number == 2


@pytest.mark.parametrize("n_rows", [0, 1, 2])
def test_the_numbers_of_trials_that_a_stop_ended_are_given_again(root: Path, n_rows: int) -> None:
    with open_session(root) as store:
        for kept in (True, False)[:n_rows]:
            experiment(store, kept)
        for number in (n_rows, n_rows + 1)[: n_rows + 1]:  # nothing runs beside the baseline
            store.save(number, f"print({number}, 'stopped')\n", "stopped", "fingerprint: f")
    with open_session(root) as store:
        assert store.next_number == n_rows and store.fingerprints() == set()
        experiment(store, True)
        assert [row.experiment for row in store.rows()] == list(range(n_rows + 1))
    invariants.check(root)


def test_of_two_trials_in_flight_both_may_be_kept(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        commits = [store.save(n, f"print({n + 1})\n", "in flight") for n in (1, 2)]
        for n in (2, 1):  # the later one ends first
            store.append(Row(commits[n - 1], 0.9 + n / 100, status=Status.KEEP, experiment=n))
            assert store.advance(commits[n - 1]) == ""
        assert store.train_code() == "print(2)\n"
        invariants.check(root)
    assert start(root) == []


def test_two_work_trees_that_start_at_once_get_a_session_each(root: Path, tmp_path: Path) -> None:
    git(root, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    with opened(root) as first, opened(tmp_path / "tree") as second:  # both have chosen before either has begun
        assert (first.tag, second.tag) == ("nov23", "nov23-2")
        with pytest.raises(SetupError, match="another agent"):
            Store.open(root, None, "nov23")
        for store in (first, second):
            store.begin()
            store.recover()
            experiment(store, True)
            invariants.check(store.root)


def test_one_session_is_at_work_in_one_work_tree(root: Path, tmp_path: Path) -> None:
    git(root, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    with opened(root, "mine"), pytest.raises(SetupError, match="session mine is at work in another work tree"):
        Store.open(tmp_path / "tree", "mine", "nov23")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_file_that_cannot_be_written_is_found_at_the_start(root: Path) -> None:
    (root / "results.tsv").chmod(0o444)
    with pytest.raises(PermissionError, match="results.tsv"):
        Store.open(root, None, "nov23")


@pytest.mark.parametrize("harm", [remove("train.py"), put("train.py")])
def test_a_lost_train_py_can_be_read_before_it_is_put_back(rested: Path, harm: Callable[[Path], None]) -> None:
    harm(rested)
    with opened(rested) as store:
        assert store.train_code() == "print(2)\n"
        assert store.recover() == ["put the incumbent's train.py back"]


# -- kills --------------------------------------------------------------------------------------------------------


def writes(root: Path, event: str, args: tuple) -> bool:
    """Whether an audited event of this process, or the git command that it starts, may change the checkout."""
    if event == "subprocess.Popen":
        words = [word for word in args[1][1:] if word != "-c" and "=" not in word]
        return words[0] not in READING
    if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return False
    return event in ("open", "os.rename", "os.remove", "os.truncate") and str(args[0]).startswith(str(root))


def stopped_at(step: int, action: Callable[[], None], work: Callable[[Path], None], root: Path) -> bool:
    """Do `work` in a child of this process, with `action` in place of its write number `step`; False: it has fewer."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    left = step

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        if writes(root, event, args):
            left -= 1
            if left < 0:
                action()

    sys.addaudithook(hook)
    status = 3
    try:
        work(root)
        status = 0
    except (SetupError, OSError):
        status = 137
    finally:
        os._exit(status)


def die() -> None:
    os._exit(137)


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def first_evening(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        store.close()


def second_evening(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, False)
        experiment(store, True)


def other_tag(root: Path) -> None:
    start(root, "other")


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(("work", "action"), [(first_evening, die), (second_evening, die), (other_tag, die),
                                              (first_evening, fill_disk)])
def test_a_stop_at_any_write_loses_one_experiment_at_most(fresh: Path, session: Path, tmp_path: Path,
                                                          work: Callable[[Path], None], action: Callable[[], None],
                                                          stride: int) -> None:
    for step in range(stride - 1, 100, stride):
        root = copy(fresh if work is first_evening else session, tmp_path / str(step))
        if not stopped_at(step, action, work, root):
            assert step > 5
            return
        tag = git(root, "symbolic-ref", "HEAD").removeprefix("refs/heads/autoresearch/")
        before = ledger.read(root / "results.tsv")
        with open_session(root) as store:
            rows = store.rows()
            assert store.recover() == []
            if tag == store.tag:
                assert rows[:len(before)] == before  # our copy gets a row first, and is emptied last for a new tag
                assert len(rows) - len(before) in (0, 1) or work is other_tag
            assert len(refs(root, f"refs/autoresearch/{store.tag}/")) - len(rows) in (0, 1)
            invariants.check(root)
            experiment(store, True)
            store.close()
        assert git(root, "status", "--porcelain") == ""
        assert set(refs(root, "refs/heads")) <= {"refs/heads/main"} | {
            f"refs/heads/autoresearch/{name}" for name in ("nov23", "other")}
        shutil.rmtree(root)


@pytest.mark.parametrize("kind", [
    "advance without tree", "our copy of the rows deleted", *(pytest.param(kind, marks=pytest.mark.long) for kind in (
        "damaged row", "missing results.tsv", "missing candidate"))])
def test_a_kill_inside_recovery_is_recovered_from(rested: Path, tmp_path: Path, kind: str) -> None:
    rows = ledger.read(rested / "results.tsv")
    DAMAGE[kind](rested)
    for step in range(100):
        root = copy(rested, tmp_path / str(step))
        killed = stopped_at(step, die, lambda root: start(root), root)
        with open_session(root) as store:
            assert store.rows()[:3] == rows
        invariants.check(root)
        if not killed:
            return


# -- cost ---------------------------------------------------------------------------------------------------------


def test_a_kept_experiment_takes_few_git_commands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One takes 1.5 to 2 ms on an idle machine, and save and advance together have 50 ms."""
    commands, run = [], Checkout.run
    with open_session(root) as store:
        experiment(store, True)
        monkeypatch.setattr(Checkout, "run", lambda *words, **more: commands.append(words) or run(*words, **more))
        commit = store.save(1, "print(2)\n", "next", "")
        store.advance(commit)
    assert len(commands) <= 18, commands


def test_text_of_a_model_is_no_fingerprint(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        store.save(1, "print(2)\n", "x", "because\nfingerprint: forged\n\nsource: m\nfingerprint: true")
        store.save(2, "print(3)\n", "x", "fingerprint: forged\n\nsource: m")
        assert store.fingerprints() == {"true"}


@pytest.mark.parametrize("harm", ["restore", "remove", "empty", "cut", "other"])
def test_a_row_is_appended_after_all_earlier_ones_whatever_was_done_to_the_file(root: Path, harm: str) -> None:
    path = root / "results.tsv"
    with open_session(root) as store:
        for keep in (True, True, False, False):
            experiment(store, keep)
        before = path.read_bytes()
        harms = {"restore": lambda: git(root, "restore", "results.tsv"), "remove": path.unlink,
                 "empty": lambda: path.write_bytes(b""), "cut": lambda: os.truncate(path, len(before) - 20),
                 "other": lambda: (path.unlink(), path.write_text("shopping\n"))}
        commit = store.save(4, "print(9)\n", "x", "")
        harms[harm]()
        row = Row(commit, 1.5, status=Status.DISCARD, experiment=4)
        store.append(row)
        assert path.read_bytes() == before + ledger.format_row(row).encode()
    with open_session(root):
        invariants.check(root)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_row_that_cannot_be_written_whole_is_not_written_at_all(tmp_path: Path, number: int,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(ledger.HEADER)

    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        ledger.append(path, Row("abc", 1.0))
    assert path.read_text() == ledger.HEADER


def test_open_files_do_not_grow(root: Path) -> None:
    with open_session(root) as store:
        experiment(store, True)
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for _ in range(5):
            experiment(store, True)
        assert not before or len(os.listdir("/proc/self/fd")) == before


# -- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=1+1", "+a", "-x", "@cf/model", "'=1", "''@", "'quoted'", "a=b", "", "'"])
def test_a_cell_is_no_formula_and_reads_back_as_it_was(text: str) -> None:
    row = Row("abc", -1.5, status=Status.DISCARD, description=text, source=text, note=text)
    line = ledger.format_row(row)
    assert ledger.parse_row(line) == row
    assert all(cell[:1] not in "=+@" or not cell for cell in line.rstrip("\n").split("\t")) and "\t-1.500000\t" in line


def test_a_busy_row_counts_nowhere() -> None:
    busy = Row("a", 9.0, status=Status.BUSY, experiment=1)
    own = Row("a", 1.0, status=Status.KEEP, experiment=1)
    history = ledger.experiments([Row("b", 2.0, status=Status.KEEP), busy, own, Row("c", 3.0, status=Status.BUSY,
                                                                                   experiment=2)])
    assert [e.number for e in history] == [0, 1, 2]
    assert (history[1].own, history[1].val_bpb, history[2].val_bpb) == (own, 1.0, None)
    assert ledger.incumbent(history) is history[1] and ledger.misses(history) == 0
    assert ledger.sigma(history) is None


def test_the_noise_is_that_of_val_else_of_test_and_a_pinned_seed_says_nothing() -> None:
    def measured(number: int, split: str, *values: float) -> list[Row]:
        return [Row(str(number), value, status=Status.REPEAT, experiment=number, split=split) for value in values]

    tested = ledger.experiments(measured(0, "test", 1.0, 3.0) + measured(1, "val", 2.0, 2.0))
    assert ledger.sigma(tested) == 2 ** 0.5
    assert ledger.sigma([*tested, *ledger.experiments(measured(2, "val", 1.0, 2.0))]) == 0.5 ** 0.5
    assert ledger.pooled_deviation([[1.0], []]) is None
