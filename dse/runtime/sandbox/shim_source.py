"""The guest source behind :mod:`dse.runtime.sandbox.shims`, as text: it never runs on the host.

The classes are namespaces: functions without ``self``, called on the class. Whatever a shim imports gets a name
of its own, because it shares its globals with the guest.
"""

from __future__ import annotations

__all__ = ["SOURCES"]

_STATISTICS = """
import math as dse_x_math_
class dse_x_statistics:
    StatisticsError = ValueError
    def _data(data, least, what):
        data = list(data)
        if len(data) < least:
            raise ValueError(what + " requires at least " + ("one data point" if least == 1 else str(least) + " data points"))
        return data
    def _sum(data):
        for x in data:
            if type(x) is float:
                return dse_x_math_.fsum(data)
        return sum(data)
    def _ratio(total, n):
        if type(total) is int and total % n == 0:
            return total // n
        return total / n
    def mean(data):
        data = dse_x_statistics._data(data, 1, "mean")
        return dse_x_statistics._ratio(dse_x_statistics._sum(data), len(data))
    def fmean(data, weights=None):
        data = dse_x_statistics._data(data, 1, "fmean")
        if weights is None:
            return dse_x_math_.fsum(data) / len(data)
        weights = list(weights)
        if len(weights) != len(data):
            raise ValueError("data and weights must be the same length")
        return dse_x_math_.fsum([a * b for a, b in zip(data, weights)]) / dse_x_math_.fsum(weights)
    def geometric_mean(data):
        data = dse_x_statistics._data(data, 1, "geometric_mean")
        return dse_x_math_.exp(dse_x_math_.fsum([dse_x_math_.log(x) for x in data]) / len(data))
    def harmonic_mean(data):
        data = dse_x_statistics._data(data, 1, "harmonic_mean")
        if min(data) < 0:
            raise ValueError("harmonic mean does not support negative values")
        if 0 in data:
            return 0
        return len(data) / dse_x_math_.fsum([1 / x for x in data])
    def median(data):
        data = sorted(dse_x_statistics._data(data, 1, "median"))
        n = len(data)
        return data[n // 2] if n % 2 else (data[n // 2 - 1] + data[n // 2]) / 2
    def median_low(data):
        data = sorted(dse_x_statistics._data(data, 1, "median_low"))
        return data[(len(data) - 1) // 2]
    def median_high(data):
        data = sorted(dse_x_statistics._data(data, 1, "median_high"))
        return data[len(data) // 2]
    def multimode(data):
        counts = {}
        for x in data:
            counts[x] = counts.get(x, 0) + 1
        top = max(counts.values(), default=0)
        return [x for x in counts if counts[x] == top]
    def mode(data):
        return dse_x_statistics.multimode(dse_x_statistics._data(data, 1, "mode"))[0]
    def _squares(data, center):
        if center is None:
            center = dse_x_statistics.mean(data)
        return dse_x_statistics._sum([(x - center) * (x - center) for x in data])
    def variance(data, xbar=None):
        data = dse_x_statistics._data(data, 2, "variance")
        return dse_x_statistics._ratio(dse_x_statistics._squares(data, xbar), len(data) - 1)
    def pvariance(data, mu=None):
        data = dse_x_statistics._data(data, 1, "pvariance")
        return dse_x_statistics._ratio(dse_x_statistics._squares(data, mu), len(data))
    def stdev(data, xbar=None):
        data = dse_x_statistics._data(data, 2, "stdev")
        return dse_x_math_.sqrt(dse_x_statistics._squares(data, xbar) / (len(data) - 1))
    def pstdev(data, mu=None):
        data = dse_x_statistics._data(data, 1, "pstdev")
        return dse_x_math_.sqrt(dse_x_statistics._squares(data, mu) / len(data))
    def quantiles(data, *, n=4, method="exclusive"):
        data = sorted(dse_x_statistics._data(data, 2, "quantiles"))
        size = len(data)
        if n < 1:
            raise ValueError("n must be at least 1")
        if method == "inclusive":
            m = size - 1
            return [(data[i * m // n] * (n - i * m % n) + data[i * m // n + 1] * (i * m % n)) / n for i in range(1, n)]
        if method != "exclusive":
            raise ValueError("Unknown method: " + repr(method))
        m = size + 1
        result = []
        for i in range(1, n):
            j = min(max(i * m // n, 1), size - 1)
            delta = i * m - j * n
            result.append((data[j - 1] * (n - delta) + data[j] * delta) / n)
        return result
    def covariance(x, y):
        x, y = list(x), list(y)
        if len(x) != len(y):
            raise ValueError("covariance requires that both inputs have same number of data points")
        x = dse_x_statistics._data(x, 2, "covariance")
        mx, my = dse_x_math_.fsum(x) / len(x), dse_x_math_.fsum(y) / len(y)
        return dse_x_math_.fsum([(a - mx) * (b - my) for a, b in zip(x, y)]) / (len(x) - 1)
    def correlation(x, y):
        x, y = list(x), list(y)
        spread = dse_x_statistics.variance(x) * dse_x_statistics.variance(y)
        if spread == 0:
            raise ValueError("at least one of the inputs is constant")
        return dse_x_statistics.covariance(x, y) / dse_x_math_.sqrt(spread)
"""

_HEAPQ = """
class dse_x_heapq:
    def _down(heap, start, pos):
        item = heap[pos]
        while pos > start:
            up = (pos - 1) // 2
            if not item < heap[up]:
                break
            heap[pos] = heap[up]
            pos = up
        heap[pos] = item
    def _up(heap, pos):
        end, start, item = len(heap), pos, heap[pos]
        child = 2 * pos + 1
        while child < end:
            if child + 1 < end and not heap[child] < heap[child + 1]:
                child = child + 1
            heap[pos] = heap[child]
            pos = child
            child = 2 * pos + 1
        heap[pos] = item
        dse_x_heapq._down(heap, start, pos)
    def heappush(heap, item):
        heap.append(item)
        dse_x_heapq._down(heap, 0, len(heap) - 1)
    def heappop(heap):
        last = heap.pop()
        if not heap:
            return last
        first = heap[0]
        heap[0] = last
        dse_x_heapq._up(heap, 0)
        return first
    def heapify(heap):
        for i in reversed(range(len(heap) // 2)):
            dse_x_heapq._up(heap, i)
    def heapreplace(heap, item):
        first = heap[0]
        heap[0] = item
        dse_x_heapq._up(heap, 0)
        return first
    def heappushpop(heap, item):
        if heap and heap[0] < item:
            return dse_x_heapq.heapreplace(heap, item)
        return item
    def nlargest(n, iterable, key=None):
        data = list(iterable)
        return (sorted(data, reverse=True) if key is None else sorted(data, key=key, reverse=True))[: max(n, 0)]
    def nsmallest(n, iterable, key=None):
        data = list(iterable)
        return (sorted(data) if key is None else sorted(data, key=key))[: max(n, 0)]
    def merge(*iterables, key=None, reverse=False):
        data = [x for it in iterables for x in it]
        return sorted(data, reverse=reverse) if key is None else sorted(data, key=key, reverse=reverse)
"""

_OPERATOR = """
class dse_x_operator:
    def itemgetter(*items):
        if len(items) == 1:
            return lambda o: o[items[0]]
        return lambda o: tuple([o[i] for i in items])
    def _dotted(o, path):
        for name in path.split("."):
            o = getattr(o, name)
        return o
    def attrgetter(*paths):
        if len(paths) == 1:
            return lambda o: dse_x_operator._dotted(o, paths[0])
        return lambda o: tuple([dse_x_operator._dotted(o, p) for p in paths])
    def add(a, b): return a + b
    def concat(a, b): return a + b
    def sub(a, b): return a - b
    def mul(a, b): return a * b
    def truediv(a, b): return a / b
    def floordiv(a, b): return a // b
    def mod(a, b): return a % b
    def pow(a, b): return a ** b
    def neg(a): return -a
    def abs(a): return a if a >= 0 else -a
    def eq(a, b): return a == b
    def ne(a, b): return a != b
    def lt(a, b): return a < b
    def le(a, b): return a <= b
    def gt(a, b): return a > b
    def ge(a, b): return a >= b
    def and_(a, b): return a & b
    def or_(a, b): return a | b
    def xor(a, b): return a ^ b
    def not_(a): return not a
    def truth(a): return True if a else False
    def is_(a, b): return a is b
    def is_not(a, b): return a is not b
    def contains(a, b): return b in a
    def countOf(a, b): return len([x for x in a if x == b])
    def getitem(a, b): return a[b]
"""

_STRING = """
class dse_x_string:
    ascii_lowercase = "abcdefghijklmnopqrstuvwxyz"
    ascii_uppercase = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    ascii_letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    digits = "0123456789"
    hexdigits = "0123456789abcdefABCDEF"
    octdigits = "01234567"
    punctuation = "!\\"#$%&'()*+,-./:;<=>?@[\\\\]^_`{|}~"
    whitespace = " \\t\\n\\r\\x0b\\x0c"
    printable = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!\\"#$%&'()*+,-./:;<=>?@[\\\\]^_`{|}~ \\t\\n\\r\\x0b\\x0c"
    def capwords(s, sep=None):
        return (sep or " ").join([w.capitalize() for w in s.split(sep)])
"""

_CALENDAR = """
import datetime as dse_x_datetime_
class dse_x_calendar:
    MONDAY = 0
    TUESDAY = 1
    WEDNESDAY = 2
    THURSDAY = 3
    FRIDAY = 4
    SATURDAY = 5
    SUNDAY = 6
    day_name = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    day_abbr = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    month_name = ["", "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
    month_abbr = ["", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    def isleap(year):
        return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    def weekday(year, month, day):
        return dse_x_datetime_.date(year, month, day).weekday()
    def monthrange(year, month):
        if not 1 <= month <= 12:
            raise ValueError("bad month number " + str(month) + "; must be 1-12")
        days = [31, 29 if dse_x_calendar.isleap(year) else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        return dse_x_datetime_.date(year, month, 1).weekday(), days[month - 1]
"""

_TEXTWRAP = """
class dse_x_textwrap:
    def dedent(text):
        lines = [line if line.strip() else "" for line in text.split("\\n")]
        margin = None
        for line in lines:
            if line:
                lead = line[: len(line) - len(line.lstrip())]
                if margin is None:
                    margin = lead
                while not lead.startswith(margin):
                    margin = margin[:-1]
        return "\\n".join([line[len(margin or ""):] for line in lines])
    def indent(text, prefix, predicate=None):
        out = []
        for line in text.split("\\n"):
            wanted = line.strip() if predicate is None else predicate(line)
            out.append(prefix + line if wanted else line)
        return "\\n".join(out)
    def shorten(text, width, placeholder=" [...]"):
        words = text.split()
        if len(" ".join(words)) <= width:
            return " ".join(words)
        while words and len(" ".join(words)) + len(placeholder) > width:
            words.pop()
        return " ".join(words) + placeholder if words else placeholder.strip()
"""

_CONTEXTLIB = """
class dse_x_suppress:
    def __init__(self, *kinds):
        self.kinds = kinds
    def __enter__(self):
        return None
    def __exit__(self, kind, error, trace):
        return error is not None and isinstance(error, self.kinds)
class dse_x_nullcontext:
    def __init__(self, result=None):
        self.result = result
    def __enter__(self):
        return self.result
    def __exit__(self, kind, error, trace):
        return False
class dse_x_contextlib:
    def suppress(*kinds):
        return dse_x_suppress(*kinds)
    def nullcontext(result=None):
        return dse_x_nullcontext(result)
"""

_ASYNCIO = """
import asyncio as dse_x_asyncio_
class dse_x_permit:
    def __init__(self, value=1):
        self.value = value
    def __enter__(self):
        return self
    def __exit__(self, kind, error, trace):
        return False
    async def acquire(self):
        return True
    def release(self):
        return None
    def locked(self):
        return False
async def dse_x_settle(aw):
    try:
        return await aw
    except Exception as e:
        return e
class dse_x_asyncio:
    TimeoutError = TimeoutError
    CancelledError = KeyboardInterrupt
    async def gather(*aws, return_exceptions=False):
        if return_exceptions:
            aws = [dse_x_settle(aw) for aw in aws]
        return await dse_x_asyncio_.gather(*aws)
    def create_task(aw, *, name=None, context=None):
        return aw
    def ensure_future(aw, *, loop=None):
        return aw
    def shield(aw):
        return aw
    async def wait_for(aw, timeout=None):
        return await aw
    def as_completed(aws, *, timeout=None):
        return list(aws)
    async def to_thread(function, *args, **kwargs):
        return function(*args, **kwargs)
    def Semaphore(value=1):
        return dse_x_permit(value)
    def BoundedSemaphore(value=1):
        return dse_x_permit(value)
    def timeout(delay=None):
        return dse_x_permit(delay)
"""

_RE = """
import re as dse_x_re_
class dse_x_re:
    def replace(matches, repl, string, count):
        out, last = [], 0
        for n, m in enumerate(matches):
            if count and n >= count:
                break
            out.append(string[last:m.start()])
            out.append(repl(m))
            last = m.end()
        out.append(string[last:])
        return "".join(out)
    def sub(pattern, repl, string, count=0, flags=0):
        return dse_x_re.replace(dse_x_re_.finditer(pattern, string, flags), repl, string, count)
    def pattern_sub(pattern, repl, string, count=0):
        return dse_x_re.replace(pattern.finditer(string), repl, string, count)
"""

# Compiled patterns that a guest keeps from run to run. Those made of inputs must not fill its memory.
_PATTERNS = """
import re as dse_x_patterns_re
dse_x_patterns_kept = {}
def dse_x_patterns_compile(pattern, flags=0):
    if not isinstance(pattern, str) or not isinstance(flags, int):
        return dse_x_patterns_re.compile(pattern, flags)
    key = (pattern, flags) if flags else pattern
    kept = dse_x_patterns_kept.get(key)
    if kept is None:
        kept = dse_x_patterns_re.compile(pattern, flags)
        if len(dse_x_patterns_kept) < 1024:
            dse_x_patterns_kept[key] = kept
    return kept
def dse_x_patterns_search(pattern, string, flags=0):
    if isinstance(pattern, str) and isinstance(string, str) and isinstance(flags, int):
        return dse_x_patterns_compile(pattern, flags).search(string)
    return dse_x_patterns_re.search(pattern, string, flags)
def dse_x_patterns_match(pattern, string, flags=0):
    if isinstance(pattern, str) and isinstance(string, str) and isinstance(flags, int):
        return dse_x_patterns_compile(pattern, flags).match(string)
    return dse_x_patterns_re.match(pattern, string, flags)
def dse_x_patterns_fullmatch(pattern, string, flags=0):
    if isinstance(pattern, str) and isinstance(string, str) and isinstance(flags, int):
        return dse_x_patterns_compile(pattern, flags).fullmatch(string)
    return dse_x_patterns_re.fullmatch(pattern, string, flags)
def dse_x_patterns_findall(pattern, string, flags=0):
    if isinstance(pattern, str) and isinstance(string, str) and isinstance(flags, int):
        return dse_x_patterns_compile(pattern, flags).findall(string)
    return dse_x_patterns_re.findall(pattern, string, flags)
def dse_x_patterns_finditer(pattern, string, flags=0):
    if isinstance(pattern, str) and isinstance(string, str) and isinstance(flags, int):
        return dse_x_patterns_compile(pattern, flags).finditer(string)
    return dse_x_patterns_re.finditer(pattern, string, flags)
def dse_x_patterns_sub(pattern, repl, string, count=0, flags=0):
    if isinstance(pattern, str) and isinstance(string, str) and isinstance(repl, str) and isinstance(count, int) and isinstance(flags, int):
        return dse_x_patterns_compile(pattern, flags).sub(repl, string, count)
    return dse_x_patterns_re.sub(pattern, repl, string, count, flags)
def dse_x_patterns_split(pattern, string, maxsplit=0, flags=0):
    if isinstance(pattern, str) and isinstance(string, str) and isinstance(maxsplit, int) and isinstance(flags, int):
        return dse_x_patterns_compile(pattern, flags).split(string, maxsplit)
    return dse_x_patterns_re.split(pattern, string, maxsplit, flags)
"""

_JSON = """
import json as dse_x_json_
class dse_x_json:
    def plain(o, default):
        if o is None or isinstance(o, (bool, int, float, str)):
            return o
        if isinstance(o, dict):
            return {k: dse_x_json.plain(v, default) for k, v in o.items()}
        if isinstance(o, (list, tuple)):
            return [dse_x_json.plain(v, default) for v in o]
        return dse_x_json.plain(default(o), default)
    def dumps(o, *, default=None, **options):
        return dse_x_json_.dumps(o if default is None else dse_x_json.plain(o, default), **options)
"""

_DATACLASSES = """
class dse_x_dataclasses:
    def is_dataclass(o):
        return hasattr(o, "__dataclass_fields__")
    def names(o):
        if not hasattr(o, "__dataclass_fields__"):
            raise TypeError("expected a dataclass instance")
        return list(o.__dataclass_fields__)
    def value(o):
        if hasattr(o, "__dataclass_fields__"):
            return dse_x_dataclasses.asdict(o)
        if isinstance(o, dict):
            return {k: dse_x_dataclasses.value(v) for k, v in o.items()}
        if isinstance(o, list):
            return [dse_x_dataclasses.value(v) for v in o]
        if isinstance(o, tuple):
            return tuple([dse_x_dataclasses.value(v) for v in o])
        return o
    def asdict(o):
        return {n: dse_x_dataclasses.value(getattr(o, n)) for n in dse_x_dataclasses.names(o)}
    def astuple(o):
        return tuple([dse_x_dataclasses.value(getattr(o, n)) for n in dse_x_dataclasses.names(o)])
    def replace(o, **changes):
        fields = {n: getattr(o, n) for n in dse_x_dataclasses.names(o)}
        fields.update(changes)
        return type(o)(**fields)
"""

_TYPING = """
class dse_x_typing:
    TypedDict = dict
    def cast(kind, value): return value
    def assert_never(value): raise AssertionError("unexpected value: " + repr(value))
    def NewType(name, kind): return lambda value: value
    def overload(f): return f
    def final(f): return f
    def runtime_checkable(f): return f
"""

_COLLECTIONS = """
class dse_x_collections:
    OrderedDict = dict
"""

_ABC = """
class dse_x_abc:
    Mapping = dict
    MutableMapping = dict
    Sequence = (list, tuple, str, range)
    MutableSequence = list
    Set = (set, frozenset)
    MutableSet = set
    Iterable = (list, tuple, str, bytes, dict, set, frozenset, range)
    Collection = (list, tuple, str, bytes, dict, set, frozenset, range)
    Sized = (list, tuple, str, bytes, dict, set, frozenset, range)
"""

_FUNCTOOLS = """
class dse_x_functools:
    def wraps(wrapped, assigned=None, updated=None):
        return lambda f: f
"""

_METHODS = """
import collections as dse_x_collections_
import datetime as dse_x_datetime_
class dse_x_m:
    UTC = dse_x_datetime_.timezone.utc
    def namedtuple(name, fields, defaults):
        return dse_x_collections_.namedtuple(name, fields, defaults=defaults)
    def isocalendar(d):
        day = dse_x_datetime_.date(d.year, d.month, d.day)
        thursday = day + dse_x_datetime_.timedelta(days=3 - day.weekday())
        week = (thursday - dse_x_datetime_.date(thursday.year, 1, 1)).days // 7 + 1
        return dse_x_iso(thursday.year, week, day.weekday() + 1)
    def toordinal(d):
        return (dse_x_datetime_.date(d.year, d.month, d.day) - dse_x_datetime_.date(1, 1, 1)).days + 1
    def utcnow(kind):
        return dse_x_datetime_.datetime.now(dse_x_datetime_.timezone.utc).replace(tzinfo=None)
    def utcfromtimestamp(kind, seconds):
        return dse_x_datetime_.datetime.fromtimestamp(seconds, dse_x_datetime_.timezone.utc).replace(tzinfo=None)
    def is_integer(x):
        return x == int(x) if abs(x) < 1e300 else x == x and x not in (float("inf"), float("-inf"))
    def bit_length(x):
        return len(bin(abs(x))) - 2 if x else 0
    def format_map(s, mapping):
        return s.format(**mapping)
    def translate(s, table):
        out = []
        for c in s:
            r = table[ord(c)] if ord(c) in table else c
            out.append(chr(r) if isinstance(r, int) else r or "")
        return "".join(out)
    def maketrans(x, y=None, z=""):
        if y is None:
            return {(ord(k) if isinstance(k, str) else k): v for k, v in x.items()}
        table = {ord(a): ord(b) for a, b in zip(x, y, strict=True)}
        table.update({ord(c): None for c in z})
        return table
    def difference_update(s, *others):
        for o in others:
            for x in list(o):
                s.discard(x)
    def intersection_update(s, *others):
        for x in list(s):
            for o in others:
                if x not in set(o):
                    s.discard(x)
    def symmetric_difference_update(s, other):
        for x in set(other):
            if x in s:
                s.remove(x)
            else:
                s.add(x)
    def callable(x):
        return type(x).__name__ in ("function", "builtin_function_or_method", "type", "partial") or hasattr(x, "__call__")
dse_x_iso = dse_x_collections_.namedtuple("IsoCalendarDate", ["year", "week", "weekday"])
"""

SOURCES = {
    "statistics": _STATISTICS, "heapq": _HEAPQ, "operator": _OPERATOR, "string": _STRING, "calendar": _CALENDAR,
    "textwrap": _TEXTWRAP, "contextlib": _CONTEXTLIB, "asyncio": _ASYNCIO, "re": _RE, "json": _JSON,
    "dataclasses": _DATACLASSES, "typing": _TYPING, "collections": _COLLECTIONS, "abc": _ABC,
    "functools": _FUNCTOOLS, "m": _METHODS, "patterns": _PATTERNS,
}  # fmt: skip
