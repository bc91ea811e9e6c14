"""ReplayBuffer in a child that is forked while other threads use it, and in threads that outlive the main one."""

from buffer_helpers import run_script

from gym_replay import ReplayBuffer

CHILD_OF_A_SAMPLER = """
import os, signal, sys, threading
from gym_replay import ReplayBuffer
buffer = ReplayBuffer(sys.argv[1], fields={"x": "int64"})
buffer.store_episode(x=range(9))
started, go = threading.Event(), threading.Event()

def slow(batch):
    started.set()
    go.wait(60)
    return batch

thread = threading.Thread(target=buffer.sample, args=(4,), kwargs={"transform": slow})
thread.start()
started.wait(60)
if (child := os.fork()) == 0:
    signal.alarm(20)
    print(buffer.sample(4)["x"].shape[0], flush=True)
    os._exit(0)
status = os.waitpid(child, 0)[1]
go.set()
thread.join()
print(status, len(buffer.sample(3)["x"]))
"""

CHILD_OF_AN_OPENER = """
import os, signal, sys, threading
from gym_replay import ReplayBuffer
ReplayBuffer(sys.argv[1], fields={"x": "int64"}).close()
children = []

def trace(frame, event, _):
    # Wherever another thread computes what is kept then, the first times.
    is_ours = "gym_replay" in frame.f_code.co_filename and len(children) < 4
    if is_ours and frame.f_back.f_code.co_name == "__get__":
        forking.set()
        forked.wait(60)
        forked.clear()
    return None

forking, forked, over = threading.Event(), threading.Event(), threading.Event()

def work():
    sys.settrace(trace)
    ReplayBuffer.from_folder(sys.argv[1], read_only=True)
    over.set()
    forking.set()

threading.Thread(target=work).start()
while forking.wait(60) and not over.is_set():
    forking.clear()
    if (child := os.fork()) == 0:
        signal.alarm(20)
        with ReplayBuffer(f"{sys.argv[1]}/{len(children)}", fields={"y": "int64"}) as buffer:
            buffer.store_episode(y=[1])
        os._exit(0)
    children.append(os.waitpid(child, 0)[1])
    forked.set()
print(children)
"""


def test_a_child_samples_that_was_forked_while_another_thread_did(tmp_path):
    assert run_script(CHILD_OF_A_SAMPLER, tmp_path) == (0, "4\n0 3")


def test_a_child_records_that_was_forked_while_another_thread_opened_a_buffer(tmp_path):
    assert run_script(CHILD_OF_AN_OPENER, tmp_path) == (0, "[0, 0, 0, 0]")


AFTER_THE_MAIN_THREAD = """
import os, sys, threading
import numpy as np
from gym_replay import Field, ReplayBuffer, merge, n_step_loader, pull, push
here = sys.argv[1]
fields = {"x": Field("float32", (500,)), "y": Field("float32", (500,), codec="zstd")}
buffer = ReplayBuffer(f"{here}/data", fields=fields)

def work():
    threading.main_thread().join()
    for k in range(4):
        buffer.store_episode(x=np.full((700, 500), k), y=np.full((700, 500), k))
    print(sum(len(batch["x"]) for batch in n_step_loader(buffer, 100, shuffle="block", drop_last=False)))
    print(len(merge([buffer], f"{here}/merged")))
    push(buffer, f"file://{here}/there")
    print(len(pull(f"file://{here}/there", f"{here}/again")))
    far = ReplayBuffer.from_url(f"file://{here}/there", cache=f"{here}/cache")
    print(sum(len(batch["x"]) for batch in n_step_loader(far, 100, shuffle="block", drop_last=False)))

threading.Thread(target=work).start()
"""


def test_a_thread_that_outlives_the_main_one_goes_on(tmp_path):
    status, said = run_script(AFTER_THE_MAIN_THREAD, tmp_path)
    assert (status, said.split("\n")[:4]) == (0, ["2796", "4", "4", "2796"])
    assert "Traceback" not in said


def test_a_transform_may_sample(tmp_path):
    with ReplayBuffer(tmp_path, fields={"x": "int64"}) as buffer:
        buffer.store_episode(x=range(9))
        batch = buffer.sample(4, transform=lambda batch: {**batch, "other": buffer.sample(2)["x"]})
        assert (len(batch["x"]), len(batch["other"])) == (4, 2)
