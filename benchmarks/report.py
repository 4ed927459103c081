"""The page of a large run: its size, and the time to write it, see it and use it in a real browser.

make bench
"""

import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from harness import REPO, Report, load_script, measure

REPORT = REPO / "llama-eval-report.py"
TASKS, SAMPLES, LENGTH = 2000, 8, 80_000  # characters of a response

# When something was painted first, once that has happened.
PAINTED = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"

# Milliseconds from the wish to see a task until it is laid out.
OPENED = """
const start = performance.now();
return open(rows[arguments[0]].dataset.id).then(() => {
  document.querySelector("dialog pre").getBoundingClientRect();
  return performance.now() - start;
});
"""


def write_state(path: Path, browser: ModuleType) -> int:
    """Write the state of a run with long responses; returns the length of all of them."""
    llama_eval = load_script(REPO / "llama-eval.py")
    problems = [llama_eval.Problem(str(at), f"Question {at}?", "70") for at in range(TASKS // SAMPLES)]
    dataset = llama_eval.make_dataset("large", "large.jsonl", problems)
    state = llama_eval.new_run(dataset, llama_eval.Prompt("json", "{question}"), llama_eval.Sampling(), SAMPLES)
    length = 0
    for at, task in enumerate(state.tasks):
        content = browser.prose(at, LENGTH)
        length += len(content)
        response = llama_eval.Response(content, "", "stop", "tiny", 100, LENGTH // 4, 50.0, LENGTH / 200)
        grade = llama_eval.Grade("correct" if at % 3 else "incorrect", "70" if at % 3 else "71", "json", "regex")
        moments = (f"2026-01-{at // 60 // 24 + 1:02}T{at // 60 % 24:02}:{at % 60:02}:00+00:00",) * 2
        state.task_states[task.id] = llama_eval.TaskState(
            grade.verdict, grade, response, "http://127.0.0.1:8080", 1, None, *moments
        )
    with path.open("w", encoding="utf-8") as file:
        file.writelines(llama_eval.state_to_json(state, "none"))
    return length


def page_of_a_large_run(report: Report, browser: ModuleType) -> None:
    """Everything about one page."""
    report.heading(f"the page of {TASKS} responses of {LENGTH // 1000} kB; floor of its size: their text")
    with tempfile.TemporaryDirectory() as folder:
        state, page = Path(folder, "run.json"), Path(folder, "run.html")
        raw = write_state(state, browser)
        cost = measure([sys.executable, str(REPORT), str(state)])
        report.figure("size of the page", page.stat().st_size / 2**20, "MiB", raw / 2**20, 0.45)
        report.figure("writing it", cost.wall, "s")
        report.figure("memory for that", cost.memory, "MiB")
        look(report, browser, page, Path(folder, "browser"))


def look(report: Report, browser: ModuleType, page: Path, home: Path) -> None:
    """The waits of a person."""
    with browser.chromium(home) as tab:
        start = time.perf_counter()
        tab.open(page)
        report.figure("the whole page loaded", time.perf_counter() - start, "s")
        painted = tab.until(lambda: tab.js(PAINTED), "something is painted")
        report.figure("first contentful paint", painted / 1000, "s", goal=1)
        for name, at in (("first", 0), ("middle", TASKS // 2), ("last", TASKS - 1)):
            report.figure(f"opening the {name} task", tab.js(OPENED, at) / 1000, "s", goal=0.2)
        report.figure("its neighbour", tab.js(OPENED, TASKS - 2) / 1000, "s", goal=0.2)


def main() -> None:
    """Measure everything, where there is a browser."""
    try:
        browser = load_script(REPO / "tests" / "browser.py")
    except ImportError as error:
        print(f"\nthe page of a large run: not measured, {error}")
        return
    if browser.programs() is None:
        print(f"\nthe page of a large run: not measured, {browser.MISSING}")
        return
    report = Report("report")
    page_of_a_large_run(report, browser)
    report.save()


if __name__ == "__main__":
    main()
