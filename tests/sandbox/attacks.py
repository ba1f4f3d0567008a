"""What hostile code tries, one program an attack, and what it must not achieve.

A program prints WIN, or the arena's secret, when it got what it wanted; what cannot be seen from
inside (a signal that arrived, a file that changed) the arena looks for itself. `@NAME@` stands for
what the arena planted.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """One hostile program."""

    name: str
    family: str
    code: str
    ends: tuple[str, ...] = ()
    """Verdicts that it must end with; empty for any."""
    processes: int = 8
    small: bool = False
    """Under small limits of time, memory, output and disk."""


_PRELUDE = """
import os, sys, ctypes, socket, struct, time, errno, signal, resource
libc = ctypes.CDLL(None, use_errno=True)
def every_file(top, most=400):
    for folder, _, names in os.walk(top, onerror=None):
        for name in names:
            most -= 1
            if most < 0: return
            yield os.path.join(folder, name)
def show(path):
    try:
        with open(path, 'rb') as f: print(f.read(1 << 16))
    except OSError: pass
"""

_SECRETS = {
    "environment": "print(dict(os.environ))",
    "parent environ": "show(f'/proc/{os.getppid()}/environ'); show('/proc/1/environ')",
    "all environs": "[show(f'/proc/{p}/environ') for p in range(1, 40000) "
    "if os.path.exists(f'/proc/{p}')]",
    "parent memory": """
for pid in (os.getppid(), @PID@, 1, 2, 3):
    try:
        with open(f'/proc/{pid}/maps') as maps, open(f'/proc/{pid}/mem', 'rb', 0) as mem:
            for line in maps:
                if 'rw' in line:
                    low, high = (int(x, 16) for x in line.split()[0].split('-'))
                    mem.seek(low); print(mem.read(min(high - low, 1 << 16))); print('WIN'); break
    except OSError: pass
""",
    "process_vm_readv": """
buffer = ctypes.create_string_buffer(64)
for pid in (os.getppid(), @PID@):
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
    remote = (ctypes.c_void_p * 2)(id(buffer), 64)
    if libc.process_vm_readv(pid, local, 1, remote, 1, 0) > 0: print('WIN')
""",
    "answer file": "show('@WORLD@/answer.json'); show('../answer.json')",
    "key files": """
for p in ('/etc/shadow', '~/.ssh/id_rsa', '/root/.ssh/id_rsa', '~/.ray/auth_token', '~/.netrc'):
    p = os.path.expanduser(p)
    try: open(p).read(1); print('WIN', p)
    except OSError: pass
""",
    "answer by link": """
os.symlink('@WORLD@/answer.json', 'link'); show('link')
try: os.link('@WORLD@/answer.json', 'hard'); show('hard')
except OSError: pass
""",
    "inherited descriptors": """
for fd in range(3, 1024):
    try: os.lseek(fd, 0, 0); print(os.read(fd, 1 << 16).replace(b'lseek', b''))
    except OSError: pass
""",
    "own argv": "print(sys.argv, sys.orig_argv); show('/proc/self/cmdline')",
    "grader's cmdline": "[show(f'/proc/{p}/cmdline') for p in range(1, 40000) "
    "if os.path.exists(f'/proc/{p}')]",
    "modules and frames": """
import gc
frame = sys._getframe()
while frame: print({k: str(v)[:2000] for k, v in frame.f_locals.items()}); frame = frame.f_back
print([str(o)[:500] for o in gc.get_objects() if isinstance(o, (dict, list))][:2000])
""",
    "open_by_handle_at": """
handle = struct.pack('Ii', 8, 1) + struct.pack('II', 2, 0)
for path in (b'/usr', b'.'):
    fd = os.open(path, os.O_RDONLY)
    if libc.open_by_handle_at(fd, handle, os.O_RDONLY) >= 0: print('WIN')
""",
}

_INTEGRITY = {
    "edit the tests": "open('@WORLD@/tests.py', 'w').write('pass')",
    "write outside": """
for place in ('@WORLD@', '/', '/tmp', '/usr', '/usr/local/bin', '/var/tmp', '/root', '/home', '/etc',
              '/dev', '/dev/shm', '/braid'):
    try: open(place + '/@MARK@', 'w').write('x')
    except OSError: pass
""",
    "chmod a system file": "os.chmod('/usr/bin/env', 0o777); print('WIN')",
    "chmod the tests": "os.chmod('@WORLD@/tests.py', 0o777)",
    "truncate the tests": "os.truncate('@WORLD@/tests.py', 0)",
    "rename the tests": "os.rename('@WORLD@/tests.py', '@WORLD@/gone.py')",
    "times of the tests": "os.utime('@WORLD@/tests.py', (1, 1))",
    "sysctl": """
for p in ('/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sysrq-trigger',
          '/proc/sys/vm/drop_caches', '/sys/fs/cgroup/memory/tasks', '/proc/@PID@/oom_score_adj'):
    try: os.close(os.open(p, os.O_WRONLY)); print('WIN', p)
    except OSError: pass
""",
    "make a disk": """
for major, minor in ((254, 0), (8, 0), (259, 0), (1, 1)):
    os.mknod(f'disk{major}', 0o600 | 0o060000, os.makedev(major, minor)); print('WIN')
""",
    "setuid programs": """
import subprocess
for command in (['su', '-c', 'id -u'], ['mount', '-t', 'tmpfs', 'x', '.'], ['newgrp'], ['ping', '-c1', '::1']):
    try: done = subprocess.run(command, capture_output=True, timeout=2)
    except (OSError, subprocess.TimeoutExpired): continue
    if done.returncode == 0: print('WIN', command)
os.setuid(0); print('WIN')
""",
    "type into a terminal": """
import fcntl
for fd in (0, 1, 2):
    try: fcntl.ioctl(fd, 0x5412, b'x'); print('WIN')
    except OSError: pass
fcntl.ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x'); print('WIN')
""",
    "leave code for the next": """
for name in ('sitecustomize.py', 'conftest.py', 'usercustomize.py', 'json.py', 'csv.py', 'random.py'):
    open(name, 'w').write("print('WIN')")
for place in ('/tmp', '/dev/shm', sys.prefix, *sys.path):
    try: open(os.path.join(place, '@MARK@'), 'w').write("print('WIN')")
    except OSError: pass
""",
    "write the reward": "open('@WORLD@/reward.json', 'w').write('1.0')",
    "dots in a path": "open('../../../../../..@WORLD@/reward.json', 'w').write('1.0')",
    "link into the world": "os.symlink('@WORLD@', 'out'); open('out/reward.json', 'w').write('1.0')",
    "remove the world": "import shutil; shutil.rmtree('@WORLD@', ignore_errors=True)",
    "the jail's own code": """
for path in every_file('/braid'):
    open(path, 'a').write('x'); print('WIN', path)
""",
}

_NETWORK = {
    "tcp": "socket.create_connection(('127.0.0.1', @TCP@), 1)",
    "tcp without the library": """
fd = libc.socket(2, 1, 0)
address = struct.pack('=H', 2) + struct.pack('!H', @TCP@) + bytes([127, 0, 0, 1]) + bytes(8)
if libc.connect(fd, address, 16) == 0: print('WIN')
""",
    "unix socket": "s = socket.socket(socket.AF_UNIX); s.connect('@WORLD@/socket')",
    "abstract socket": "s = socket.socket(socket.AF_UNIX); s.connect('\\0@ABSTRACT@')",
    "udp": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', @UDP@))",
    "dns": "socket.getaddrinfo('example.com', 80); print('WIN')",
    "metadata address": "socket.create_connection(('169.254.169.254', 80), 1); print('WIN')",
    "raw and netlink": """
for family, kind in ((16, 3), (17, 3), (2, 3), (38, 5), (40, 1)):
    try: socket.socket(family, kind); print('WIN', family)
    except OSError: pass
""",
    "listen": "s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); print('WIN')",
}

_PROCESSES = {
    "signal the parent": """
for pid in (os.getppid(), @PID@, @VICTIM@, -1):
    try: os.kill(pid, signal.SIGTERM)
    except OSError: pass
""",
    "signal by pidfd": """
for pid in (@PID@, @VICTIM@):
    try: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)
    except OSError: pass
""",
    "signal by tgkill and sigqueue": """
for pid in (@PID@, @VICTIM@):
    libc.syscall(234, pid, pid, 15); libc.syscall(200, pid, 15); libc.sigqueue(pid, 15, 0)
""",
    "attach shared memory": """
for number in range(4096):
    for shift in (0, 15, 16):
        if libc.shmat(number << shift, None, 0o10000) not in (-1, 0xffffffff): print('WIN')
""",
    "signal the group": "os.killpg(os.getpgid(os.getppid()), 15); os.killpg(os.getpgid(@PID@), 15)",
    "see other processes": """
seen = [p for p in os.listdir('/proc') if p.isdigit()]
if str(@PID@) in seen and os.path.isdir('/proc/@PID@'): print('WIN')
""",
    "ptrace": """
for pid in (os.getppid(), @PID@, @VICTIM@):
    if libc.ptrace(16, pid, 0, 0) == 0: print('WIN')
""",
    "limits of others": "resource.prlimit(@VICTIM@, resource.RLIMIT_CPU, (0, 0)); print('WIN')",
    "priority of others": "os.setpriority(os.PRIO_PROCESS, @VICTIM@, 19); print('WIN')",
    "cores of others": "os.sched_setaffinity(@VICTIM@, {0}); print('WIN')",
    "daemon": """
if os.fork() == 0:
    try: os.setsid()
    except OSError: pass
    if os.fork() == 0:
        os.execv('/bin/sh', ['@DAEMON@', '-c', 'sleep 60; true'])
    os._exit(0)
time.sleep(0.05)
""",
    "daemon with the streams": """
if os.fork() == 0:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.execv('/bin/sh', ['@DAEMON@', '-c', 'sleep 60; true'])
print('done')
""",
    "zombies": """
for _ in range(30):
    try:
        if os.fork() == 0: os._exit(0)
    except OSError: break
""",
    "leave the group": """
try: os.setsid()
except OSError: pass
if os.fork() == 0:
    try: os.setpgid(0, 0)
    except OSError: pass
    os.execv('/bin/sh', ['@DAEMON@', '-c', 'sleep 60; true'])
""",
    "ignore every signal": """
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
if os.fork() == 0:
    os.execv('/bin/sh', ['@DAEMON@', '-c', 'trap "" 1 2 3 15; sleep 60; true'])
""",
}

_KERNEL = {
    "new user namespace": """
if libc.unshare(0x10000000) == 0: print('WIN')
if libc.unshare(0x00020000) == 0: print('WIN')
""",
    "namespaces by clone": """
import platform
number = 56 if platform.machine() == 'x86_64' else 220
pid = libc.syscall(number, 0x10000000 | 17, 0, 0, 0, 0)
if pid == 0: os._exit(0)
if pid > 0: print('WIN')
pid = libc.syscall(435, struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)
if pid == 0: os._exit(0)
if pid > 0: print('WIN')
""",
    "mount": "print('WIN') if libc.mount(b'none', b'.', b'tmpfs', 0, None) == 0 else None",
    "io_uring": "print('WIN') if libc.syscall(425, 8, bytes(120)) >= 0 else None",
    "bpf": "print('WIN') if libc.syscall(321, 0, bytes(72), 72) >= 0 else None",
    "perf": "print('WIN') if libc.syscall(298, bytes(128), 0, -1, -1, 0) >= 0 else None",
    "keyctl": "print('WIN') if libc.syscall(250, 0, -3, 1) >= 0 else None",
    "userfaultfd": "print('WIN') if libc.syscall(323, 1) >= 0 else None",
    "x32 calls": "print('WIN') if libc.syscall(0x40000000 + 39) > 0 else None",
    "old 32-bit calls": """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20 (getpid); int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
if call() > 0: print('WIN')
""",
    "setns": "print('WIN') if libc.setns(os.open('/proc/1/ns/mnt', 0), 0) == 0 else None",
    "chroot": "os.chroot('.'); print('WIN')",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, time.time()); print('WIN')",
    "reboot": "print('WIN') if libc.reboot(0) == 0 else None",
}

_RESOURCES = {
    "memory": ("b = bytearray(4 << 30); print('WIN')", ("memory",)),
    "memory over forks": (
        """
for _ in range(10):
    try:
        if os.fork() == 0: break
    except OSError: break
try:
    held = []
    while len(held) < 40: held.append(bytearray(os.urandom(1 << 16) * 32))
except MemoryError: pass
time.sleep(5)
print('WIN')
""",
        ("memory", "timeout"),
    ),
    "memory in shared mappings": (
        """
import mmap
held = []
while len(held) < 400:
    m = mmap.mmap(-1, 4 << 20); m.write(b'x' * (4 << 20)); held.append(m)
print('WIN')
""",
        (),
    ),
    "memory in memfds": (
        """
held = []
while len(held) < 60:
    fd = os.memfd_create('x'); os.write(fd, b'x' * (4 << 20)); held.append(fd)
print('WIN')
""",
        (),
    ),
    "memory in System V segments": (
        "print('WIN') if libc.shmget(0, 1 << 20, 0o1600) >= 0 else None",
        (),
    ),
    "fill shared memory": (
        """
wrote = 0
for i in range(200):
    for place in ('.', '/tmp', '/dev/shm'):
        try:
            with open(f'{place}/{i}', 'wb') as f: wrote += f.write(b'x' * (1 << 20))
        except OSError: pass
    time.sleep(0.002)
if wrote > 100 << 20: print('WIN')
""",
        (),
    ),
    "20,000 files": (
        """
made = 0
try:
    for i in range(20000): open(str(i), 'w').close(); made += 1
except OSError: pass
if made >= 10000: print('WIN')
""",
        (),
    ),
    "deep folders": (
        """
for i in range(3000):
    try: os.mkdir('d'); os.chdir('d')
    except OSError: break
""",
        (),
    ),
    "shut folders": (
        "os.mkdir('a'); os.mkdir('a/b'); open('a/b/c', 'w'); os.chmod('a/b', 0); os.chmod('a', 0)",
        (),
    ),
    "endless loop": ("while True: pass", ("timeout",)),
    "endless loop without signals": (
        """
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
        ("timeout",),
    ),
    "sleep": ("time.sleep(1000)", ("timeout",)),
    "sleep in many threads": (
        "import threading\n[threading.Thread(target=time.sleep, args=(1000,)).start() for _ in range(9)]",
        ("timeout", "crash"),
    ),
    "regular expression": ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", ("timeout",)),
    "large power": ("print(len(bin(7 ** (10 ** 9))))", ("timeout", "memory")),
    "flood stdout": ("while True: print('x' * 65536)", ("output",)),
    "flood stderr": ("while True: sys.stderr.write('x' * 65536)", ("output",)),
    "5,000 descriptors": (
        "held = [os.open('/dev/null', 0) for _ in range(5000)]; print('WIN')",
        ("crash",),
    ),
    "core dump": ("resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30)); print('WIN')", ()),
    "raise a limit": (
        "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2); print('WIN')",
        (),
    ),
    "fork bomb": (
        """
while True:
    try: os.fork()
    except OSError: pass
""",
        ("timeout", "memory"),
    ),
    "thread bomb": (
        """
import threading
try:
    for _ in range(5000): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    print('WIN')
except (RuntimeError, MemoryError): pass
os._exit(1)
""",
        (),
    ),
    "large file": ("open('f', 'wb').truncate(1 << 40); print('WIN')", ()),
    "stack": (
        "sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
        ("crash", "memory", "timeout"),
    ),
}

ATTACKS: tuple[Attack, ...] = (
    *(
        Attack(name, family, _PRELUDE + code)
        for family, cases in {
            "secrets": _SECRETS,
            "integrity": _INTEGRITY,
            "network": _NETWORK,
            "processes": _PROCESSES,
            "kernel": _KERNEL,
        }.items()
        for name, code in cases.items()
    ),
    *(
        Attack(name, "resources", _PRELUDE + code, ends=ends, small=True)
        for name, (code, ends) in _RESOURCES.items()
    ),
)
