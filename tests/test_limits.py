"""What control groups allow, read from trees of files like the kernel's: versions 1 and 2, nested, and from within."""

import os

import pytest

from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import limits, memory, native

GB = 10**9
V2 = "35 24 0:30 / {top} rw,nosuid - cgroup2 cgroup2 rw\n"


class Machine:
    """A fake /proc and the control groups that it names."""

    def __init__(self, root):
        self.proc, self.top = root / "proc", root / "sys fs" / "cgroup"
        (self.proc / "self").mkdir(parents=True)

    def describe(self, cgroup, *mounts):
        (self.proc / "self" / "cgroup").write_text(cgroup)
        escaped = str(self.top).replace(" ", "\\040")
        (self.proc / "self" / "mountinfo").write_text("".join(line.format(top=escaped) for line in mounts))

    def group(self, path, **files):
        directory = self.top / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_control_groups_there_are_no_limits(machine):
    assert limits.memory_left(machine.proc) is None
    assert limits.quota(machine.proc) is None
    machine.describe("0::/\n", V2)  # A mount that is not there.
    assert limits.memory_left(machine.proc) is None


def test_the_tightest_group_on_the_way_up_decides(machine):
    machine.describe("0::/pods/mine\n", V2)
    machine.group("", memory__stat="anon 1")  # The root has no limits.
    machine.group("pods", memory__max=8 * GB, memory__current=7 * GB, memory__stat="file 5", cpu__max="150000 100000")
    machine.group("pods/mine", memory__max=4 * GB, memory__current=2 * GB, memory__stat="", cpu__max="max 100000")
    assert limits.memory_left(machine.proc) == GB
    assert limits.quota(machine.proc) == 2


def test_what_the_kernel_takes_back_before_it_kills_counts_as_free(machine):
    machine.describe("0::/\n", V2)
    stat = f"anon {GB}\nfile {3 * GB}\nactive_file {GB}\ninactive_file {GB}\nshmem {GB}\nslab_reclaimable {GB // 2}"
    machine.group("", memory__max=5 * GB, memory__current=5 * GB, memory__stat=stat)
    assert limits.memory_left(machine.proc) == 2.5 * GB
    machine.group("", memory__max=GB)
    assert limits.memory_left(machine.proc) == 0


@pytest.mark.parametrize(
    ("root", "where"), [("/", "kubepods/pod7"), ("/kubepods/pod7", ""), ("/other", "")], ids=["host", "inside", "moved"]
)
def test_version_1_has_a_mount_per_controller(machine, root, where):
    """Within a container the mount begins at its own group, whatever its path outside."""
    mount = "36 31 0:31 {root} {{top}}/{name} rw,relatime shared:9 - cgroup cgroup rw,{options}\n"
    machine.describe(
        "9:name=systemd:/else\n4:memory:/kubepods/pod7\n3:cpu,cpuacct:/kubepods/pod7\n0::/\n",
        mount.format(root=root, name="memory", options="memory"),
        mount.format(root=root, name="cpu,cpuacct", options="cpu,cpuacct"),
    )
    machine.group("memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=GB, memory__stat="")
    machine.group("cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    stat = f"active_file 0\ninactive_file 0\ntotal_active_file {GB // 4}\ntotal_inactive_file {GB // 4}"
    machine.group(
        f"memory/{where}", memory__limit_in_bytes=2 * GB, memory__usage_in_bytes=GB + GB // 2, memory__stat=stat
    )
    machine.group(f"cpu,cpuacct/{where}", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    assert limits.memory_left(machine.proc) == GB
    assert limits.quota(machine.proc) == 1


@pytest.mark.parametrize("text", ["", "nonsense", "max", "100000", "-1 100000", "1 0", "²  1"])
def test_a_quota_that_says_nothing_is_none(machine, text):
    machine.describe("0::/\n", V2)
    machine.group("", cpu__max=text, memory__max=text, memory__current="x", memory__stat="file")
    assert limits.quota(machine.proc) is None
    assert limits.memory_left(machine.proc) is None


def test_a_quota_chooses_cores_and_other_containers_others():
    allowed = tuple(range(3, 19))
    assert limits.chosen(allowed, None, "a") == limits.chosen(allowed, 99, "a") == allowed
    found = {limits.chosen(allowed, 4, f"pod-{k}") for k in range(50)}
    assert len(found) > 4
    assert all(len(set(cores)) == 4 and set(cores) <= set(allowed) for cores in found)
    assert set(limits.cores()) <= os.sched_getaffinity(0)


def test_what_a_container_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "memory_left", lambda: 10**6)
    assert memory.available_bytes() == 10**6
    with pytest.raises(ConfigError, match=r"^arrays need 2.0 MB but .* has 1.0 MB left; take fewer\.$"):
        memory.check_fits(2 * 10**6, "arrays", "take fewer")


def test_the_kernels_team_is_no_larger_than_the_quota(monkeypatch):
    library = native.load()
    if library is None:
        pytest.skip("the native kernels were not built")
    told = []
    monkeypatch.setattr(limits, "cores", lambda: (4, 7, 8))
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: _Recording(library, told))
    native.load.__wrapped__()
    assert told == [3]


class _Recording:
    """A library whose number of threads is noted, not set."""

    def __init__(self, library, told):
        self._library, self._told = library, told

    def rlx2_use_threads(self, most):
        self._told.append(most.value)

    def __getattr__(self, name):
        return getattr(self._library, name)
