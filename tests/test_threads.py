"""Order, errors and the end of threads."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from sslkit.threads import in_order, ordered_groups


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("sslkit-data")]


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_results_come_in_order_whatever_each_takes(num_threads):
    def slow(item):
        time.sleep(0.01 if item % 3 == 0 else 0.0)
        return item * item

    groups = [(f"group {g}", [3 * g, 3 * g + 1, 3 * g + 2][: 1 + g % 3]) for g in range(12)]
    results = list(ordered_groups(slow, groups, num_threads=num_threads))
    assert results == [(tag, [item * item for item in items]) for tag, items in groups]
    assert loader_threads() == []


def test_only_a_bounded_number_of_groups_is_started():
    started = []

    def groups():
        for number in range(100):
            started.append(number)
            yield number, [number]

    results = ordered_groups(lambda item: item, groups(), num_threads=2, groups_ahead=3)
    next(results)
    assert len(started) == 4
    next(results)
    assert len(started) == 5
    results.close()


@pytest.mark.parametrize("num_threads", [0, 3])
def test_error_is_raised_in_its_place_and_ends_the_threads(num_threads):
    def fail_at_five(item):
        if item == 5:
            raise ValueError("five")
        return item

    results = ordered_groups(fail_at_five, ((i, [i]) for i in range(20)), num_threads=num_threads)
    assert [next(results)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert loader_threads() == []


def test_closing_early_and_interrupts_leave_no_threads():
    def work(item):
        time.sleep(0.005)
        return item

    results = ordered_groups(work, ((i, [i]) for i in range(1000)), num_threads=4)
    next(results)
    assert loader_threads()
    results.close()
    assert loader_threads() == []

    results = ordered_groups(work, ((i, [i]) for i in range(1000)), num_threads=4)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert loader_threads() == []

    results = ordered_groups(work, ((i, [i]) for i in range(1000)), num_threads=4)
    next(results)
    del results
    assert loader_threads() == []


def test_threads_of_the_loader_work_alone_and_the_callers_setting_stays():
    torch.set_num_threads(3)  # the fixture of all tests puts it back
    groups = [(None, list(range(8)))]
    ((_, seen),) = ordered_groups(lambda _: torch.get_num_threads(), groups, num_threads=2)
    if "OpenMP" in torch.__config__.parallel_info():
        assert set(seen) == {1}
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("num_threads", [0, 3])
def test_single_items_come_in_order_and_few_ahead(num_threads):
    asked = []

    def numbers():
        for number in range(50):
            asked.append(number)
            yield number

    results = in_order(lambda item: item * item, numbers(), num_threads=num_threads, ahead=4)
    assert next(results) == 0
    assert len(asked) == (5 if num_threads else 1)
    assert list(results) == [number * number for number in range(1, 50)]
    assert loader_threads() == []


def test_what_an_item_raises_comes_in_its_place():
    results = in_order(lambda item: 1 // item, [2, 1, 0, 1], num_threads=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert loader_threads() == []


@pytest.mark.slow  # an interpreter that imports torch
@pytest.mark.parametrize("ended", ["pass", "made.close()"])
def test_an_interpreter_that_ends_while_threads_are_inside_torch_is_not_aborted(tmp_path, ended):
    """A daemon that comes back from C++ then is ended there: `terminate called without an active
    exception`, exit code -6, in 12 of 12 tries without the wait at the end."""
    script = tmp_path / "left.py"
    script.write_text(
        "import torch\n"
        "from sslkit import threads\n"
        "threads._LINGER_S = 0.0  # a machine on which the work takes longer than that\n"
        "x = torch.rand(300, 300)\n"
        "def work(item):\n"
        "    return sum(float((x @ x).sum()) for _ in range(100 * item))\n"
        "made = threads.ordered_groups(work, [(0, [0]), *[(1, [1] * 500)] * 9], num_threads=3)\n"
        f"next(made)\n{ended}\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
