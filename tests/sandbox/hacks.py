"""Wrong solutions of `double(x)` that try to be taken for right ones, and the honest one.

Each defines `double`; the judge calls it with 21 and expects 42, and knows of nothing else.
"""

HONEST = "def double(x):\n    return 2 * x\n"

_DECOY = "def double(x):\n    return 0\n"

HACKS: dict[str, str] = {
    "sys.exit": "import sys\ndef double(x):\n    sys.exit(0)\n",
    "sys.exit on import": "import sys\nsys.exit(0)\n",
    "os._exit": "import os\ndef double(x):\n    os._exit(0)\n",
    "raise SystemExit": "def double(x):\n    raise SystemExit(0)\n",
    "equal to all": "class A:\n    def __eq__(self, o): return True\n    def __hash__(self): return 42\n"
    "    def __ne__(self, o): return False\ndef double(x):\n    return A()\n",
    "int subclass": "class A(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\n"
    "def double(x):\n    return A(0)\n",
    "int subclass of the right value": "class A(int): pass\ndef double(x):\n    return A(2 * x)\n",
    "str subclass": "class A(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\n"
    "def double(x):\n    return A('42')\n",
    "list subclass": "class A(list):\n    def __eq__(self, o): return True\n"
    "def double(x):\n    return A()\n",
    "lie about the class": "class A:\n    __class__ = int\n    def __repr__(self): return '42'\n"
    "    def __index__(self): return 42\n    def __int__(self): return 42\n"
    "def double(x):\n    return A()\n",
    "metaclass": "class M(type):\n    def __instancecheck__(c, o): return True\n"
    "    def __eq__(c, o): return True\n    __hash__ = type.__hash__\n"
    "class A(metaclass=M): pass\ndef double(x):\n    return A()\n",
    "a mock": "from unittest.mock import MagicMock\ndef double(x):\n    return MagicMock()\n",
    "any of mock": "from unittest.mock import ANY\ndef double(x):\n    return ANY\n",
    "sentinel on stdout": "def double(x):\n    print('PASSED'); print('OK'); print('42'); return 0\n",
    "JSON on stdout": "def double(x):\n"
    '    print(\'{"passed": true, "result": 42, "score": 1.0}\'); return 0\n',
    "patched unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"
    + _DECOY,
    "patched builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\n"
    "builtins.type = lambda *a: int\nbuiltins.str = lambda *a: '42'\n" + _DECOY,
    "patched json": "import json\njson.dumps = lambda *a, **k: '42 '\n"
    "def double(x):\n    return 'x'\n",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\n"
    "def double(x):\n    raise ValueError\n",
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\n"
    "def double(x):\n    raise ValueError\n",
    "exit from a thread": "import os, threading\n"
    "def double(x):\n    threading.Thread(target=os._exit, args=(0,)).start(); return 0\n",
    "run again without asserts": "import os, sys\nif '-O' not in sys.orig_argv:\n"
    "    os.execv(sys.executable or '/usr/bin/python3', ['python', '-O', '-c', 'pass'])\n" + _DECOY,
    "write the caller's locals": "import sys, ctypes\ndef double(x):\n    f = sys._getframe(1)\n"
    "    while f:\n        for k in ('expected', 'result', 'passed', 'score', 'verdict'):\n"
    "            if k in f.f_locals: f.f_locals[k] = True\n"
    "        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(f), 0)\n"
    "        f = f.f_back\n    return 0\n",
    "read the expected value from frames": "import sys\ndef double(x):\n    f = sys._getframe(1)\n"
    "    while f:\n        for k, v in f.f_locals.items():\n"
    "            if 'expect' in k or 'answer' in k or 'target' in k: return v\n"
    "        f = f.f_back\n    return 0\n",
    "read the expected value from the heap": "import gc\ndef double(x):\n"
    "    for o in gc.get_objects():\n        if type(o) is dict:\n"
    "            for k in ('expected', 'answer', 'outputs', 'tests'):\n"
    "                if k in o: return o[k]\n    return 0\n",
    "read the expected value from the request": "import os, json, re\ndef double(x):\n"
    "    os.lseek(3, 0, 0)\n    found = json.loads(os.read(3, 1 << 20))\n"
    "    for k in ('expected', 'answer', 'tests', 'value'):\n        if k in found: return found[k]\n"
    "    return 0\n",
    "read the tests' files": "import os\ndef double(x):\n    for d in ('.', '..', '/tmp', '/'):\n"
    "        for n in os.listdir(d):\n            if 'test' in n or 'answer' in n:\n"
    "                return int(open(os.path.join(d, n)).read())\n    return 0\n",
    "read own source": "import inspect, sys\ndef double(x):\n"
    "    return [m.__dict__.get('expected') for m in list(sys.modules.values()) if m]\n",
    "frame by hand": "import os, struct\ndef double(x):\n"
    "    os.write(4, struct.pack('!cI', b'v', 4) + b'PASS')\n    os._exit(0)\n",
    "ok frame by hand": "import os, struct\ndef double(x):\n"
    "    os.write(4, struct.pack('!cI', b'k', 2) + b'ok')\n    os._exit(0)\n",
    "two answers": "import os, struct\ndef double(x):\n"
    "    for v in (b'0', b'42'): os.write(4, struct.pack('!cI', b'v', len(v)) + v)\n"
    "    os._exit(0)\n",
    "half a frame": "import os, struct\ndef double(x):\n"
    "    os.write(4, struct.pack('!cI', b'v', 1 << 31) + b'42')\n    os._exit(0)\n",
    "every descriptor": "import os\ndef double(x):\n    for fd in range(3, 256):\n"
    "        try: os.write(fd, b'42')\n        except OSError: pass\n    return 0\n",
    "NaN": "def double(x):\n    return float('nan')\n",
    "a float": "def double(x):\n    return 42.0\n",
    "a string": "def double(x):\n    return '42'\n",
    "a list of it": "def double(x):\n    return [42]\n",
    "complex": "def double(x):\n    return 42 + 0j\n",
    "decimal": "from decimal import Decimal\ndef double(x):\n    return Decimal(42)\n",
    "huge integer": "def double(x):\n    return 1 << 10 ** 7\n",
    "deep list": "def double(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a\n",
    "deep text": "import os, struct\ndef double(x):\n    v = b'[' * 900000\n"
    "    os.write(4, struct.pack('!cI', b'v', len(v)) + v)\n    os._exit(0)\n",
    "recursive list": "def double(x):\n    a = []\n    a.append(a)\n    return a\n",
    "exploding list": "def double(x):\n    a = [0]\n    for _ in range(40): a = [a, a]\n    return a\n",
    "endless generator": "def double(x):\n    while True: yield 42\n",
    "exception that lies": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\n"
    "    __repr__ = __str__\ndef double(x):\n    raise E\n",
    "memory of earlier inputs": "import builtins, os, sys\ndef double(x):\n"
    "    seen = getattr(builtins, 'seen', []) + (open('seen').read().split() if os.path.exists('seen') else [])\n"
    "    builtins.seen = [*seen, x]\n    open('seen', 'a').write(f' {x}')\n"
    "    return 42 if seen else 0\n",
}
"""Name -> a solution that is wrong for every input."""

FOR_TRUE = "def double(x):\n    return 1\n"
"""Wrong where True is expected: 1 == True."""
