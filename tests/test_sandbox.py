"""What a trial may touch, tried from inside at every level that this machine allows."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from lab import sandbox, syscalls

LEVELS = [kind for kind in ("ns", "filter") if sandbox.best_kind(kind) == kind]
needs_a_level = pytest.mark.skipif(not LEVELS, reason="this kernel has no Landlock")
PACKAGES = Path(sysconfig.get_path("purelib"))

# Before each attempt: what it calls, by the numbers of this processor.
BEFORE = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""

# Each must end in an OSError. {outside} is a process of ours, {file} a file of ours that a trial cannot write,
# {library} one that it can read, {name[...]} the number of a system call.
FORBIDDEN = {
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "tcp": "import socket; socket.socket()",
    "mptcp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "vsock": "import socket; socket.socket(socket.AF_VSOCK)",
    "unix socket by path": "import socket; socket.socket(socket.AF_UNIX).connect({socket!r})",
    "unix datagram by path": "import socket; a, b = socket.socketpair(type=socket.SOCK_DGRAM)\n"
                             "a.sendto(b'', {socket!r})",
    "system v memory": "call({number[shmget]}, 7, 4096, 0o1600)",
    "system v semaphore": "call({number[semget]}, 7, 1, 0o1600)",
    "system v queue": "call({number[msgget]}, 7, 0o1600)",
    "posix queue": "call({number[mq_open]}, b'word', os.O_CREAT | os.O_RDWR, 0o600, None)",
    "keyring": "call({number[add_key]}, b'user', b'word', b'x', 1, -4)",
    "attribute": "os.setxattr({library!r}, 'user.word', b'x')",
    "attribute of its own": "open('own', 'w').close(); os.setxattr('own', 'user.word', b'x')",
    "time": "os.utime({library!r})",
    "time of a folder": "os.utime(os.path.dirname({library!r}), (1, 1))",
    "mode": "os.chmod({library!r}, 0o644)",
    "owner": "os.chown({library!r}, os.getuid(), -1)",
    "truncate": "os.truncate({file!r}, 0)",
    "write": "open({file!r}, 'a')",
    "read": "open({file!r})",
    "link": "os.link({file!r}, 'mine')",
    "lease": "import fcntl; fcntl.fcntl(open({library!r}), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "write hint": "import fcntl; fcntl.fcntl(open({library!r}), 1036, (2).to_bytes(8, 'little'))",
    "inode flags": "import fcntl; fcntl.ioctl(open({library!r}), 0x40086602, b'\\0' * 8)",
    "inode version": "import fcntl; fcntl.ioctl(open({library!r}), 0x40086604, b'\\7' * 8)",
    "limits of the parent": "import resource; resource.prlimit({outside}, resource.RLIMIT_NOFILE, (1, 1))",
    "limits of its own parent": "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))",
    "priority": "os.setpriority(os.PRIO_PROCESS, {outside}, 19)",
    "priority of the user": "os.setpriority(os.PRIO_USER, 0, 19)",
    "affinity": "os.sched_setaffinity({outside}, [0])",
    "input and output priority": "call({number[ioprio_set]}, 1, {outside}, 0)",
    "signal": "os.kill({outside}, 0)",
    "kernel log": "call({number[syslog]}, 10, None, 0)",
    "seals of memory": "import fcntl; fcntl.fcntl(os.memfd_create('x', 2), 1033, 0x10)",
    "trace": "call({number[ptrace]}, 16, {outside}, 0, 0)",
    "memory of another": "call({number[process_vm_readv]}, {outside}, None, 0, None, 0, 0)",
    "environment of another": "open('/proc/{outside}/environ', 'rb').read()",
    "descriptor of another": "call({number[pidfd_getfd]}, os.pidfd_open(os.getpid()), 0, 0)",
    "comparison": "call({number[kcmp]}, os.getpid(), os.getpid(), 2, 0, 0)",
    "io_uring": "call({number[io_uring_setup]}, 1, ctypes.create_string_buffer(256))",
    "cache of a file": "import mmap; f = open({library!r}, 'rb'); m = mmap.mmap(f.fileno(), 9, prot=1)\n"
                       "a = ctypes.c_void_p.from_buffer_copy(ctypes.string_at(id(m) + 16, 8)).value\n"
                       "call({number[mincore]}, ctypes.c_void_p(a), 4096, ctypes.create_string_buffer(1))",
    "cached reads": "f = open({library!r}, 'rb'); os.preadv(f.fileno(), [bytearray(1)], 0, 8)",
    "drop from the cache": "os.posix_fadvise(os.open({library!r}, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)",
    "drop pages": "import mmap; m = mmap.mmap(-1, 4096); m.madvise(21)",
    "inotify": "call({number[inotify_init1]}, 0)",
    "fanotify": "call({number[fanotify_init]}, 0x200, 0)",
    "file handles": "call({number[name_to_handle_at]}, -100, b'/', ctypes.create_string_buffer(200), "
                    "ctypes.create_string_buffer(8), 0)",
    "user namespace": "call({number[unshare]}, 0x10000000)",
    "namespace by clone": "call({number[clone]}, 0x10000000 | 17, 0, 0, 0, 0)",
    "namespace of another": "call({number[setns]}, os.open('/proc/self/ns/mnt', os.O_RDONLY), 0)",
    "mount": "call({number[mount]}, b'none', b'.', b'tmpfs', 0, None)",
    "bpf": "call({number[bpf]}, 5, None, 0)",
    "perf": "call({number[perf_event_open]}, None, 0, -1, -1, 0)",
    "userfaultfd": "call({number[userfaultfd]}, 1)",
    "secret memory": "call({number[memfd_secret]}, 0)",
    "newer system call": "call(463, -100, b'own', 0, b'user.word', None, 0)",
    "clone3": "call({number[clone3]}, None, 0)",
    "home": "os.listdir({home!r})",
    "run": "os.listdir('/run/lock')",
    "files of another": "os.readlink('/proc/{outside}/fd/0')",
}

ALLOWED = {
    "files": "open('a', 'w').write('x'); os.rename('a', 'b'); os.mkdir('d'); os.link('b', 'd/b'); os.remove('b')",
    "temporary files": "import tempfile; tempfile.NamedTemporaryFile().write(b'x'); tempfile.TemporaryDirectory()",
    "subprocess": "import subprocess\nassert subprocess.run(['/bin/sh', '-c', 'exit 7']).returncode == 7\n"
                  "assert subprocess.check_output([sys.executable, '-c', 'print(1)']) == b'1\\n'",
    "fork": "pid = os.fork()\nif not pid:\n    os._exit(3)\nassert os.waitstatus_to_exitcode(os.wait()[1]) == 3",
    "spawn": "import multiprocessing as m\nif __name__ == '__main__':\n"
             "    p = m.get_context('spawn').Process(target=print); p.start(); p.join(); assert p.exitcode == 0",
    "pipes": "import multiprocessing as m\na, b = m.Pipe()\n"
             "c = m.get_context('fork').Process(target=a.send, args=(5,)); c.start(); assert b.recv() == 5; c.join()",
    "kill of a child": "import subprocess\np = subprocess.Popen(['sleep', '60']); p.kill(); assert p.wait() == -9",
    "socketpair": "import socket; a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'",
    "event loop": "import asyncio; asyncio.run(asyncio.sleep(0))",
    "threads": "import threading; t = threading.Thread(target=int); t.start(); t.join()",
    "memfd": "import mmap; fd = os.memfd_create('x'); os.ftruncate(fd, 4096); mmap.mmap(fd, 4096)[0] = 1",
    "locks": "import fcntl; f = open('lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)",
    "own limits": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); os.nice(1)",
    "processors": "os.sched_setaffinity(0, os.sched_getaffinity(0))",
    "devices": "open('/dev/null', 'w').write('x'); assert len(open('/dev/urandom', 'rb').read(8)) == 8",
    "compiler": "import subprocess, sysconfig\n"
                "open('a.c', 'w').write('#include <Python.h>\\nint f(void) { return 7; }')\n"
                "include = '-I' + sysconfig.get_path('include')\n"
                "subprocess.check_call(['cc', '-shared', '-fPIC', include, 'a.c', '-o', 'a.so'])\n"
                "assert ctypes.CDLL('./a.so').f() == 7",
}
ALLOWED_IN_NAMESPACES = {
    "semaphores": "import multiprocessing as m; q = m.Queue(); q.put(3); assert q.get() == 3",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory\n"
                     "SharedMemory(create=True, size=9).unlink()",
    "unix sockets": "import socket; s = socket.socket(socket.AF_UNIX); s.bind('own'); s.listen()\n"
                    "socket.socket(socket.AF_UNIX).connect('own')",
    "temporary folder": "open('/tmp/a', 'w').write('x')",
    "its own processes alone": "assert os.getppid() == 1 and len([n for n in os.listdir('/proc') if n.isdigit()]) == 2",
    "only what is named": "assert sorted(os.listdir('/proc/1/task')) == ['1'] and not os.path.exists('/var')",
    "no interfaces": "assert 'eth' not in open('/proc/net/dev').read()",
}


@pytest.fixture(params=LEVELS)
def at(request, monkeypatch):
    monkeypatch.setenv(sandbox.LEVEL_VARIABLE, request.param)
    return request.param


def words(folder: Path, program: list[str], hidden=()) -> dict:
    return {"args": sandbox.command(str(folder), str(folder), program, hidden), "cwd": folder,
            "env": sandbox.environment(str(folder), str(folder)), "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT, "text": True}


def inside(folder: Path, code: str, hidden=()) -> subprocess.CompletedProcess:
    (folder / "code.py").write_text(BEFORE + code)
    return subprocess.run(**words(folder, [sys.executable, "code.py"], hidden), timeout=120)


def all_of(attempts: dict[str, str], says: str) -> str:
    """One program that runs each attempt in a fork of its own and prints the names of those that did not end so."""
    return f"""
for name, code in {attempts!r}.items():
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            exec(code, {{**globals(), "__name__": "x"}})
            end = "succeeded"
        except OSError as error:
            end = "refused" if error.errno in (1, 2, 3, 13, 18, 25, 30, 38, 95) else repr(error)
        except BaseException as error:
            end = repr(error)
        if end != {says!r}:
            print(name, end, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@needs_a_level
def test_what_is_forbidden_is_refused(at, tmp_path, request):
    (tmp_path / "work").mkdir()
    outside = Path(tempfile.mkdtemp(dir="/var/tmp"))  # /tmp is the trial's own
    request.addfinalizer(lambda: shutil.rmtree(outside))
    file, place = outside / "file", outside / "socket"
    file.write_text("secret")
    before = file.stat()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()
    number = {call.name: call.numbers.get(os.uname().machine) for call in syscalls.calls(True)}
    facts = {"outside": os.getpid(), "file": str(file), "library": str(PACKAGES / "torch" / "version.py"),
             "socket": str(place), "home": os.path.expanduser("~"), "number": number}
    attempts = {name: code.format(**facts) for name, code in FORBIDDEN.items()}
    listener.settimeout(0)
    end = inside(tmp_path / "work", all_of(attempts, "refused"))
    assert (end.returncode, end.stdout) == (0, "")
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()
    assert file.read_text() == "secret" and file.stat().st_mtime_ns == before.st_mtime_ns
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1


@needs_a_level
def test_what_training_needs_works(at, tmp_path):
    together = {name: code for name, code in ALLOWED.items() if name != "spawn"}  # it runs its own file again
    end = inside(tmp_path, all_of(together, "succeeded"))
    assert (end.returncode, end.stdout) == (0, "")
    end = inside(tmp_path, ALLOWED["spawn"])
    assert end.returncode == 0, end.stdout


@pytest.mark.skipif("ns" not in LEVELS, reason="namespaces are refused here")
@pytest.mark.parametrize("name", ALLOWED_IN_NAMESPACES)
def test_namespaces_give_a_trial_places_of_its_own(tmp_path, name):
    end = inside(tmp_path, ALLOWED_IN_NAMESPACES[name])
    assert end.returncode == 0, end.stdout


@needs_a_level
def test_torch_works(at, tmp_path):
    end = inside(tmp_path, "import torch; print((torch.ones(64, 64) @ torch.ones(64, 64)).sum().item())")
    assert end.stdout == "262144.0\n"


@needs_a_level
@pytest.mark.long
def test_torch_compiles(at, tmp_path):
    end = inside(tmp_path, "import torch\nf = torch.compile(lambda x: (x.sin() + 1).exp())\n"
                           "print(f(torch.zeros(1)).item())")
    assert end.stdout.startswith("2.7182"), end.stdout


@needs_a_level
def test_hidden_folders_cannot_be_read_and_their_siblings_can(at, tmp_path):
    hidden = [PACKAGES / "sympy" / "core" / "tests", PACKAGES / "networkx" / "classes" / "tests"]
    kept = str(PACKAGES / "sympy" / "core" / "basic.py")
    code = f"""
open({kept!r}).read()
import sympy.core
for folder in {list(map(str, hidden))!r}:
    for name in ("__init__.py", "test_basic.py", "test_graph.py"):
        try:
            print("read", open(f"{{folder}}/{{name}}").read()[:9])
        except OSError:
            pass
"""
    end = inside(tmp_path, code, hidden)
    assert (end.returncode, end.stdout) == (0, "")
    assert "read" in inside(tmp_path, code).stdout


@needs_a_level
def test_nothing_but_this_environment_can_be_read(at, tmp_path):
    others = [Path(sys.base_prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages",
              Path("/usr/lib/python3/dist-packages"), Path("/lib/python3/dist-packages"),
              Path("/usr/share/doc"), Path("/usr/share/python-wheels"),
              Path("/var/cache"), Path("/etc/shadow"), Path("/etc/ssh"), Path(sys.base_prefix).parent,
              Path(__file__).parent.parent, Path("~/.cache").expanduser()]
    places = [str(path) for path in others if path.exists() and path != PACKAGES]
    end = inside(tmp_path, f"""
for place in {places!r}:
    try:
        for name in os.listdir(place) if os.path.isdir(place) else ["."]:
            path = os.path.join(place, name)
            if os.path.isfile(path):
                print("read", path, open(path, "rb").read(1))
    except OSError:
        pass
""")
    assert (end.returncode, end.stdout) == (0, "")


def test_data_below_what_trials_read_is_named(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(PACKAGES)
    assert sandbox.exposed([tmp_path, Path("/usr/lib/data")]) == Path("/usr/lib/data")
    assert sandbox.exposed([link / "data"]) == link / "data"
    assert sandbox.exposed([tmp_path, Path(__file__), Path("~/.cache").expanduser()]) is None


@needs_a_level
@pytest.mark.parametrize("code, ends", [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("os.abort()", -6),
                                        ("ctypes.string_at(0)", -11), ("pass", 0)])
def test_exit_codes_and_signals_are_passed_on(at, tmp_path, code, ends):
    assert inside(tmp_path, code).returncode == ends


@needs_a_level
def test_memory_of_the_trial_is_counted(at, tmp_path):
    process = subprocess.Popen(**words(tmp_path, [sys.executable, "-c", "x = bytearray(300_000_000)"]))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    process.stdout.close()
    assert status == 0 and usage.ru_maxrss > 290_000


@needs_a_level
def test_descriptors_are_passed_and_a_hang_up_is_seen(at, tmp_path):
    read, write = os.pipe()
    code = f"import os, time; os.write({write}, b'x'); os.close({write}); time.sleep(60)"
    process = subprocess.Popen(**words(tmp_path, [sys.executable, "-c", code]), pass_fds=[write],
                               start_new_session=True)
    os.close(write)
    assert os.read(read, 9) == b"x"
    assert os.read(read, 9) == b""  # though the trial still runs
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(20) == -9
    process.stdout.close()
    os.close(read)


PARENT = """
import os, subprocess, sys, time
sys.path.insert(0, {root!r})
from lab import sandbox
words = sandbox.command({folder!r}, {folder!r}, [sys.executable, "-c", {code!r}])
process = subprocess.Popen(words, cwd={folder!r}, stdout=subprocess.PIPE)
print(process.stdout.readline().decode().strip(), flush=True)
time.sleep(60)
"""


@needs_a_level
def test_a_trial_dies_with_its_parent(at, tmp_path):
    code = "import os, time\nif at == 'ns':\n    os.fork() or os.setsid()\nos.write(1, b'up\\n')\ntime.sleep(61.25)"
    words = [sys.executable, "-c", PARENT.format(root=str(Path(__file__).parent.parent), folder=str(tmp_path),
                                                 code=code.replace("at ==", f"{at!r} =="))]
    sandbox.adopt_orphans()
    before = set(sandbox.descendants(os.getpid()))
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
    until = time.monotonic() + 20
    while (left := set(sandbox.descendants(os.getpid())) - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left


@needs_a_level
def test_limits_below_ours_are_kept(at, tmp_path):
    hard = 10_000_000
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_FSIZE), resource.getrlimit(resource.RLIMIT_CORE))"
    end = subprocess.run(**words(tmp_path, [sys.executable, "-c", code]), timeout=60,
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)))
    assert end.stdout == f"({hard}, {hard}) (0, 0)\n"


@pytest.mark.skipif(os.getuid() != 0 or not LEVELS, reason="only root can become another user")
def test_an_ordinary_user_has_the_same_level(at, tmp_path):
    """With a copy of the interpreter's own files a stranger could not read, so with the system's Python."""
    python = "/usr/bin/python3"
    if not os.path.exists(python):
        pytest.skip("no system Python")
    code = Path("/tmp") / f"sandbox-{os.getpid()}"
    subprocess.run(["cp", "-r", str(Path(sandbox.__file__).parent.parent / "lab"), str(code)], check=True)
    subprocess.run(["chmod", "-R", "a+rX", str(code)], check=True)
    try:
        asked = subprocess.run([python, "-c", "import sys, types\nsys.modules['lab'] = m = types.ModuleType('lab')\n"
                                "sys.modules['psutil'] = types.ModuleType('psutil')\n"
                                f"m.__path__ = [{str(code)!r}]\nfrom lab import sandbox\nprint(sandbox.level())"],
                               user=65534, group=65534, extra_groups=[], capture_output=True, text=True, timeout=60,
                               cwd="/", env={"PATH": "/usr/bin", sandbox.LEVEL_VARIABLE: at})
    finally:
        subprocess.run(["rm", "-rf", str(code)], check=True)
    assert asked.stdout.strip() == sandbox.level(), asked.stderr


def test_the_level_can_only_be_lowered_by_the_parent(monkeypatch, tmp_path):
    monkeypatch.setenv(sandbox.LEVEL_VARIABLE, "none")
    assert sandbox.level() == "none"
    assert sandbox.LEVEL_VARIABLE not in sandbox.environment(str(tmp_path), str(tmp_path))
    assert json.loads(sandbox.command("a", "b", ["x"])[4]) ["kind"] == "none"


@pytest.mark.skipif(sys.platform != "linux", reason="threads are seen in /proc")
def test_the_sweep_sees_threads_behind_a_first_one_that_has_ended():
    code = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    until = time.monotonic() + 20
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.01)
    assert process.pid in sandbox.descendants(os.getpid())
    process.kill()
    process.wait(20)
    process.stdout.close()
    assert process.pid not in sandbox.descendants(os.getpid())


def test_threads_are_counted_whatever_a_process_calls_itself():
    code = """
import ctypes, threading, time
ctypes.CDLL(None).prctl(15, b"Threads:\t1", 0, 0, 0)
for _ in range(20):
    threading.Thread(target=time.sleep, args=[60], daemon=True).start()
print("up", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    assert sandbox.n_threads(process.pid) == 21
    process.kill()
    process.wait(20)
    process.stdout.close()


def test_only_plain_files_are_copied(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "plain").write_bytes(b"12345")
    (source / "out").symlink_to("/etc/passwd")
    (source / "folder").symlink_to("/etc")
    (tmp_path / "secret").write_text("x")
    os.link(tmp_path / "secret", source / "hard")
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
    target.mkdir()
    (target / "old").touch()

    assert sandbox.copy_plain(source, target, 10, 100, 3) == ""
    assert [str(p.relative_to(target)) for p in sorted(target.rglob("*"))] == ["a", "a/b", "a/b/plain"]
    assert (target / "a" / "b" / "plain").read_bytes() == b"12345"
    for bounds in ((7, 100, 3), (10, 4, 3), (10, 100, 1)):
        assert "more than {} files, {} bytes or {} folders deep".format(*bounds) in (
            sandbox.copy_plain(source, target, *bounds))
        assert list(target.iterdir()) == []
    assert "a link" in sandbox.copy_plain(source / "folder", target, 9, 9, 9)
    assert list(target.iterdir()) == []


def test_the_numbers_of_system_calls_are_the_kernels():
    header = Path("/usr/include/asm-generic/unistd.h")
    here = next(Path("/usr/include").glob("*/asm/unistd_64.h"), None)
    if not header.exists() or here is None:
        pytest.skip("no kernel headers")
    for path, machine in ((header, "aarch64"), (here, "x86_64")):
        lines = [line.split() for line in path.read_text().splitlines() if line.startswith("#define __NR")]
        known = {name.removeprefix("__NR3264_").removeprefix("__NR_"): int(number) for _, name, number, *_ in
                 filter(lambda line: len(line) > 2 and line[2].isdigit(), lines)}
        for call in syscalls.calls(True) + syscalls.calls(False):
            if call.name in known:
                assert call.numbers[machine] == known[call.name], call
            else:
                assert call.numbers.get(machine) in (None, 451, 452), call  # newer than the header


def test_a_foreign_architecture_is_killed_and_conditions_are_read_right():
    def decide(machine: str, private: bool, number: int, *args: int, arch: int | None = None) -> int:
        """What the kernel would answer: the program run by hand."""
        data = number.to_bytes(4, "little") + (arch or syscalls.ARCHITECTURES[machine]).to_bytes(4, "little") + bytes(8)
        data += b"".join(value.to_bytes(8, "little") for value in (*args, *[0] * (6 - len(args))))
        program, at, held = syscalls.program(machine, private, watchers=() if private else (700, 600)), 0, 0
        while True:
            code, yes, no = int.from_bytes(program[8 * at:8 * at + 2], "little"), *program[8 * at + 2:8 * at + 4]
            value = int.from_bytes(program[8 * at + 4:8 * at + 8], "little")
            at += 1
            if code == syscalls.RETURN:
                return value
            if code == syscalls.LOAD:
                held = int.from_bytes(data[value:value + 4], "little")
            elif code == syscalls.AND:
                held &= value
            else:
                at += yes if (held == value if code == syscalls.IF_EQUAL else held > value) else no

    refused, allowed = syscalls.ERRNO | 1, syscalls.ALLOW
    for machine in syscalls.ARCHITECTURES:
        number = {call.name: call.numbers.get(machine) for call in syscalls.calls(True)}
        assert decide(machine, True, 0, arch=0x40000003) == syscalls.KILL
        assert decide(machine, True, 0x40000000 + number["ptrace"]) == syscalls.ERRNO | 38
        for name, args, private, verdict in (
                ("socket", (1, 1), True, allowed), ("socket", (1, 1), False, refused),
                ("socket", (2, 2), True, refused),
                ("socketpair", (1, 1 | 0o2000000), True, allowed), ("socketpair", (1, 2), True, refused),
                ("socketpair", (30, 1), True, refused), ("prlimit64", (0, 7), True, allowed),
                ("prlimit64", (9, 7), True, refused), ("setpriority", (0, 0), True, allowed),
                ("setpriority", (2, 0), True, refused), ("clone", (0x11,), True, allowed),
                ("clone", (0x10000011,), True, refused), ("fcntl", (1, 1024), True, refused),
                ("fcntl", (1, 1030), True, allowed), ("fcntl", (1, 1033), False, refused),
                ("syslog", (3,), False, refused), ("ioctl", (1, 0x5401), True, allowed),
                ("ioctl", (1, 0xC020462A), True, allowed), ("ioctl", (1, 0x30000001), True, allowed),
                ("ioctl", (1, 0x40086602), True, syscalls.ERRNO | 25),
                ("ioctl", (1, 0x8901), False, syscalls.ERRNO | 25),
                ("ptrace", (), True, refused)):
            assert decide(machine, private, number[name], *args) == verdict, (machine, name, args)
        assert decide(machine, True, 462) == allowed and decide(machine, True, 463) != allowed
        signals = {call.name: call.numbers.get(machine) for call in syscalls.calls(False, watchers=(1,))}
        for target, verdict in ((700, refused), (600, refused), (-700, refused), (-1, refused), (0, allowed),
                                (701, allowed), (-701, allowed)):  # where Landlock lets signals out
            assert decide(machine, False, signals["kill"], target % 2**32, 9) == verdict, target
            assert decide(machine, True, signals["kill"], target % 2**32, 9) == allowed
        assert decide(machine, False, signals["tgkill"], 700, 705, 9) == refused
        assert decide(machine, False, signals["tkill"], 705, 9) == refused
        assert decide(machine, False, signals["pidfd_send_signal"], 5, 9) == refused
        assert decide(machine, False, signals["setsid"]) == decide(machine, False, signals["setpgid"], 0, 0) == refused


def test_the_probe_leaves_nothing_behind():
    sandbox.best_kind.cache_clear()
    before = set(sandbox.descendants(os.getpid()))
    results = []
    threads = [threading.Thread(target=lambda: results.append(sandbox.level())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(results)) == 1 and len(results) == 3
    assert set(sandbox.descendants(os.getpid())) <= before
