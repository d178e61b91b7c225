"""Processes that begin with torch and transformers imported, and nothing of effconv: forks of one that imported them.

    python preforked.py serve SOCKET              until its stdin ends
    python preforked.py run SOCKET ARGUMENT...    as `python ARGUMENT...` in a fork: a script, `-m` or `-c`

A fresh process spends five to eight CPU seconds on these imports; a fork begins after them, with its own arguments,
variables, working folder and standard streams. `run` ends as the fork ends, and takes the fork with it where it is
killed. Both versions of transformers are served, each by the Python that has it. Variables that are read at an import
(OMP_NUM_THREADS, HF_HUB_OFFLINE) are those of the server.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def run(path: str, arguments: list[str]) -> int:
    """The exit status of a fork that has this process's streams, variables and folder."""
    job = {"arguments": arguments, "variables": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(path)
        socket.send_fds(server, [json.dumps(job).encode()], [0, 1, 2])
        reply = server.recv(100)
    status = int(reply) if reply else -signal.SIGKILL  # the server itself is gone
    if status < 0:
        os.kill(os.getpid(), -status)
    return status


def serve(path: str) -> dict:
    """Serves until stdin ends; returns in each fork, with its job."""
    import gc
    import selectors

    import torch  # noqa: F401
    import transformers
    from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel

    assert all((AutoConfig, AutoModel, AutoTokenizer, BertModel))  # imported when they are named
    if int(transformers.__version__.split(".")[0]) >= 5:
        from transformers import conversion_mapping

        conversion_mapping.get_checkpoint_conversion_mapping("bert")  # for all families, built when it is first needed
    assert not any(name.split(".")[0] == "effconv" for name in sys.modules)
    gc.collect()
    gc.freeze()  # what is imported here need not be looked through, and copied by that, in every fork
    watched = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    watched.register(listener, selectors.EVENT_READ)
    watched.register(0, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in watched.select():
            if key.fileobj is listener:
                client = listener.accept()[0]
                message, streams, *_ = socket.recv_fds(client, 1 << 20, 3)
                child = os.fork()
                if child == 0:
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                        os.close(stream)
                    listener.close()
                    watched.close()
                    client.detach()
                    return json.loads(message)
                for stream in streams:
                    os.close(stream)
                ended = os.pidfd_open(child)
                watched.register(ended, selectors.EVENT_READ, (child, client))
                watched.register(client, selectors.EVENT_READ, (child, None))
            elif key.fileobj == 0:
                for child, _ in filter(None, (other.data for other in watched.get_map().values())):
                    os.kill(child, signal.SIGKILL)
                sys.exit()
            else:
                child, client = key.data
                if client is None:  # `run` was killed
                    os.kill(child, signal.SIGKILL)
                    watched.unregister(key.fileobj)
                    continue
                watched.unregister(key.fileobj)
                os.close(key.fileobj)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                if client in watched.get_map():
                    watched.unregister(client)
                    client.send(str(status).encode())
                client.close()


def end(job: dict) -> None:
    """Runs a fork's job, and ends as Python would, but for taking down what the server had imported."""
    import atexit

    try:
        become(job)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def become(job: dict) -> None:
    """Runs a fork's job as the main program."""
    import runpy

    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["variables"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    modules = os.environ.get("HF_MODULES_CACHE") or os.path.join(home, "modules")
    for name, module in list(sys.modules.items()):  # read from the environment at import
        if name.startswith("transformers") and "HF_MODULES_CACHE" in vars(module):
            module.HF_MODULES_CACHE = modules
    sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv = job["arguments"]
    if sys.argv[0] == "-m":
        sys.path.insert(0, os.getcwd())
        name = sys.argv.pop(1)
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif sys.argv[0] == "-c":
        sys.path.insert(0, "")
        code = compile(sys.argv.pop(1), "<string>", "exec")
        exec(code, vars(sys.modules["__main__"]))
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(run(sys.argv[2], sys.argv[3:]))
    sys.path.pop(0)  # this folder
    end(serve(sys.argv[2]))
