# SPDX-License-Identifier: Apache-2.0
"""Tensors in POSIX shared memory: the same bits as by raw contents, whatever clients do to their segments meanwhile."""
import atexit
import io
import os
import re
import resource
import struct
import subprocess
import threading
import time

import grpc
import inference_pb2
import numpy as np
from PIL import Image
from support import (SLOW, SLOW_DEVICE, WORK, Client, Server, Skip, expect, fails, infer_request, infer_value, package,
                     quantized, run, same, slow_request)

SHM = "/dev/shm"
made = set()
rng = np.random.default_rng(1)


def path_of(key):
    return os.path.join(SHM, key.lstrip("/"))


def segment(size, name=None):
    """A segment of zeros; its key."""
    key = f"/{name or 'bw-test'}-{os.getpid()}-{len(made)}"
    fd = os.open(path_of(key), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    made.add(path_of(key))
    os.truncate(fd, size)
    os.close(fd)
    return key


def put(key, offset, data):
    fd = os.open(path_of(key), os.O_RDWR)
    assert os.pwrite(fd, bytes(data), offset) == len(data)
    os.close(fd)


def get(key, offset, size):
    with open(path_of(key), "rb") as f:
        return os.pread(f.fileno(), size, offset)


@atexit.register
def remove_segments():
    for path in made:
        try:
            os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        except FileNotFoundError:
            pass


class Regions:
    """The extension's methods of one server."""

    def __init__(self, client):
        self.stub, self.client = client.kserve, client

    def register(self, name, key, size, offset=0):
        return self.stub.SystemSharedMemoryRegister(inference_pb2.SystemSharedMemoryRegisterRequest(
            name=name, key=key, offset=offset, byte_size=size), timeout=30 * SLOW)

    def refused(self, code, text, name, key, size=64, offset=0):
        fails(code, text, self.stub.SystemSharedMemoryRegister, inference_pb2.SystemSharedMemoryRegisterRequest(
            name=name, key=key, offset=offset, byte_size=size))

    def unregister(self, name=""):
        self.stub.SystemSharedMemoryUnregister(inference_pb2.SystemSharedMemoryUnregisterRequest(name=name),
                                               timeout=30 * SLOW)

    def status(self, name=""):
        return self.stub.SystemSharedMemoryStatus(inference_pb2.SystemSharedMemoryStatusRequest(name=name),
                                                  timeout=30 * SLOW).regions

    def infer(self, request):
        return self.stub.ModelInfer(request, timeout=30 * SLOW)


def lies(tensor, region, size, offset=None):
    """As tritonclient's set_shared_memory."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def shared_request(model, name, shape, region, size, offset=0, datatype="FP32", output=None, **fields):
    """output: (name, region, size, offset)."""
    request = inference_pb2.ModelInferRequest(model_name=model, **fields)
    lies(request.inputs.add(name=name, datatype=datatype, shape=shape), region, size, offset)
    if output:
        lies(request.outputs.add(name=output[0]), *output[1:])
    return request


server = Server(package("double"), package("sum"), package("picture"), package("wide"), package("one"), quantized("slow"),
                "--max-message-mb", "32", "--shared-memory")
atexit.register(server.process.kill)
memory = Regions(server.client)


def descriptors():
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


# --- what it is for -----------------------------------------------------------------------------------------------


def off_unless_asked_for():
    x = np.ones((1, 4), "<f4")
    with Server(package("double")) as plain:
        assert "system_shared_memory" not in plain.client.kserve.ServerMetadata(
            inference_pb2.ServerMetadataRequest(), timeout=10).extensions
        off = Regions(plain.client)
        off.refused("UNIMPLEMENTED", "start the server with --shared-memory", "r", "/s")
        fails("UNIMPLEMENTED", "--shared-memory", plain.client.kserve.SystemSharedMemoryStatus,
              inference_pb2.SystemSharedMemoryStatusRequest())
        fails("UNIMPLEMENTED", "--shared-memory", plain.client.kserve.SystemSharedMemoryUnregister,
              inference_pb2.SystemSharedMemoryUnregisterRequest())
        fails("UNIMPLEMENTED", "'x': shared memory is not offered.*--shared-memory", plain.client.kserve.ModelInfer,
              shared_request("double", "x", [1, 4], "r", 16))
        request = infer_request("double", {"x": x})
        lies(request.outputs.add(name="y"), "r", 16)
        fails("UNIMPLEMENTED", "'y': shared memory is not offered", plain.client.kserve.ModelInfer, request)
        same(infer_value(off.infer(infer_request("double", {"x": x}))), 2 * x)
    extensions = server.client.kserve.ServerMetadata(inference_pb2.ServerMetadataRequest(), timeout=10).extensions
    assert list(extensions) == ["system_shared_memory"], extensions
    for prefix in ("", "/", "a/b", "//", "x" * 300):
        expect(2, "--shared-memory=", package("double"), f"--shared-memory={prefix}")


def status_register_unregister():
    a, b = segment(4096), segment(100)
    assert not memory.status()
    memory.register("b", b, 90, 10)
    memory.register("a", a.lstrip("/"), 4096)
    memory.register("a again", a, 1, 4095)
    assert {n: (r.name, r.key, r.offset, r.byte_size) for n, r in memory.status().items()} == {
        "a": ("a", a.lstrip("/"), 0, 4096), "a again": ("a again", a, 4095, 1), "b": ("b", b, 10, 90)}
    assert list(memory.status("b")) == ["b"]
    memory.refused("ALREADY_EXISTS", f"'a' is registered already, for segment '{a.lstrip('/')}'", "a", b)
    fails("NOT_FOUND", "'c' is not registered", memory.stub.SystemSharedMemoryStatus,
          inference_pb2.SystemSharedMemoryStatusRequest(name="c"))
    memory.unregister("a")
    memory.unregister("never was there")
    assert sorted(memory.status()) == ["a again", "b"]
    memory.unregister()
    assert not memory.status()
    # Regions are the server's, not the connection's.
    memory.register("a", a, 4096)
    other = Client(server.address)
    assert list(Regions(other).status()) == ["a"]
    other.channel.close()
    assert list(memory.status()) == ["a"]
    memory.unregister("a")


def the_same_bits_in_and_out():
    key = segment(1 << 20)
    memory.register("all", key, 1 << 20)
    for batch in (1, 3, 60):
        x = rng.standard_normal((batch, 1024)).astype("<f4")
        for offset in (0, 4, 4093, 65537):
            put(key, offset, x.tobytes())
            put(key, 600000, b"\xff" * (x.nbytes + 100))
            reply = memory.infer(shared_request("wide", "x", x.shape, "all", x.nbytes, offset, id="7",
                                                output=("y", "all", x.nbytes, 600000)))
            assert reply.id == "7" and [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [
                ("y", "FP32", list(x.shape))], reply
            assert list(reply.raw_output_contents) == [b""], "values in the message"
            same(np.frombuffer(get(key, 600000, x.nbytes), "<f4").reshape(x.shape), 2 * x)
            assert get(key, 600000 + x.nbytes, 100) == b"\xff" * 100, "written beyond the output"
            assert get(key, offset, x.nbytes) == x.tobytes()
    # A network on an accelerator: gathered, ordered and checked while it is read.
    x = rng.standard_normal((5, 1, 32, 32)).astype("<f4")
    raw = infer_value(memory.infer(infer_request("slow", {"image": x})))
    put(key, 20, x.tobytes())
    reply = memory.infer(shared_request("slow", "image", x.shape, "all", x.nbytes, 20))
    same(infer_value(reply), raw)
    # More room than the output needs, at the region's very end.
    put(key, (1 << 20) - 1000, b"\xff" * 1000)
    memory.infer(shared_request("slow", "image", x.shape, "all", x.nbytes, 20,
                                output=("probabilities", "all", 1000, (1 << 20) - 1000)))
    same(np.frombuffer(get(key, (1 << 20) - 1000, raw.nbytes), "<f4").reshape(raw.shape), raw)
    assert get(key, (1 << 20) - 1000 + raw.nbytes, 1000 - raw.nbytes) == b"\xff" * (1000 - raw.nbytes)
    memory.unregister()


def a_region_too_large_to_map():
    """Read with system calls: the same bits. Its holes read as zeros and take no memory."""
    size = 17 << 30
    key = segment(size)
    memory.register("r", key, size)
    x = rng.standard_normal((5, 1, 32, 32)).astype("<f4")
    raw = infer_value(memory.infer(infer_request("slow", {"image": x})))
    for offset in (0, 4093, size - x.nbytes):
        put(key, offset, x.tobytes())
        same(infer_value(memory.infer(shared_request("slow", "image", x.shape, "r", x.nbytes, offset))), raw)
    x = rng.standard_normal((60, 1024)).astype("<f4")
    put(key, 12345, x.tobytes())
    same(infer_value(memory.infer(shared_request("wide", "x", x.shape, "r", x.nbytes, 12345))), 2 * x)
    for datatype, dtype in (("FP64", "<f8"), ("UINT8", "u1")):
        values = rng.integers(0, 255, (60, 1024)).astype(dtype)
        put(key, 4097, values.tobytes())
        same(infer_value(memory.infer(shared_request("wide", "x", x.shape, "r", values.nbytes, 4097, datatype))),
             values.astype("<f4") * 2)
    before = os.stat(path_of(key)).st_blocks
    same(infer_value(memory.infer(shared_request("wide", "x", x.shape, "r", x.nbytes, 1 << 30))), np.zeros_like(x))
    assert os.stat(path_of(key)).st_blocks == before
    put(key, 12345, x.tobytes())
    os.truncate(path_of(key), 12345 + x.nbytes - 1)
    fails("INVALID_ARGUMENT", "has become shorter", memory.stub.ModelInfer,
          shared_request("wide", "x", x.shape, "r", x.nbytes, 12345))
    memory.unregister()


def other_number_types():
    key = segment(4096)
    memory.register("r", key, 4096)
    for datatype, dtype in (("FP64", "<f8"), ("FP16", "<f2"), ("INT64", "<i8"), ("INT32", "<i4"), ("INT16", "<i2"),
                            ("INT8", "i1"), ("UINT64", "<u8"), ("UINT32", "<u4"), ("UINT16", "<u2"), ("UINT8", "u1")):
        values = np.array([[0, 1, 2, 100]] * 7, dtype)
        put(key, 3, values.tobytes())
        request = shared_request("double", "x", [7, 4], "r", values.nbytes, 3, datatype)
        same(infer_value(memory.infer(request)), values.astype("<f4") * 2)
    memory.unregister()


def beside_values_in_the_message():
    a, b = rng.standard_normal((2, 5, 3)).astype("<f4")
    key = segment(4096)
    put(key, 0, a.tobytes())
    memory.register("r", key, 4096)
    for raw in (True, False):
        for names in (("a", "b"), ("b", "a")):
            request = inference_pb2.ModelInferRequest(model_name="sum")
            for name in names:
                tensor = request.inputs.add(name=name, datatype="FP32", shape=a.shape)
                if name == "a":
                    lies(tensor, "r", a.nbytes)
                elif raw:
                    request.raw_input_contents.append(b.tobytes())
                else:
                    tensor.contents.fp32_contents.extend(b.ravel())
            reply = memory.infer(request)
            same(infer_value(reply, 0), a + b)
            same(infer_value(reply, 1), a - b)
            # One output in shared memory; the other keeps its place among the raw contents.
            lies(request.outputs.add(name="y"), "r", a.nbytes, 1024)
            request.outputs.add(name="d")
            reply = memory.infer(request)
            assert [o.name for o in reply.outputs] == ["y", "d"] and reply.raw_output_contents[0] == b""
            same(infer_value(reply, 1), a - b)
            same(np.frombuffer(get(key, 1024, a.nbytes), "<f4").reshape(a.shape), a + b)
    # The inputs' values in the message, an output in shared memory.
    for raw in (True, False):
        request = infer_request("sum", {"a": a, "b": b}, raw)
        request.outputs.add(name="d")
        lies(request.outputs.add(name="y"), "r", a.nbytes, 2048)
        reply = memory.infer(request)
        same(infer_value(reply, 0), a - b)
        assert len(reply.raw_output_contents) == (2 if raw else 0)
        same(np.frombuffer(get(key, 2048, a.nbytes), "<f4").reshape(a.shape), a + b)
    memory.unregister()


def pictures():
    png = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), "u1")).save(png, "PNG")
    png = png.getvalue()
    data = (struct.pack("<I", len(png)) + png) * 3
    typed = inference_pb2.ModelInferRequest(model_name="picture")
    typed.inputs.add(name="image", datatype="BYTES", shape=[3]).contents.bytes_contents.extend([png] * 3)
    expected = infer_value(memory.infer(typed))
    key = segment(65536)
    put(key, 9, data)
    memory.register("r", key, 65536)
    request = shared_request("picture", "image", [3], "r", len(data), 9, "BYTES")
    same(infer_value(memory.infer(request)), expected)
    fails("INVALID_ARGUMENT", "do not hold together at element 2", memory.stub.ModelInfer,
          shared_request("picture", "image", [3], "r", len(data) - 1, 9, "BYTES"))
    put(key, 9 + 4, b"none")
    fails("INVALID_ARGUMENT", "picture 0 of input 'image'", memory.stub.ModelInfer, request)
    lies(request.inputs.add(name="image", datatype="BYTES", shape=[3]), "r", len(data), 9)
    fails("INVALID_ARGUMENT", "send them once", memory.stub.ModelInfer, request)
    memory.unregister()


# --- what goes wrong ----------------------------------------------------------------------------------------------


def segments_that_are_none():
    good = segment(64)
    bad = path_of(segment(0))
    memory.refused("NOT_FOUND", "cannot be opened: No such file", "r", "/bw-test-never-made")
    memory.refused("INVALID_ARGUMENT", "not within segment .* of 0 bytes", "r", "/" + os.path.basename(bad), 1)
    for key in ("", "/", "//x", "/a/b", "a/b", "../etc/passwd", "/..", "..", ".", "/.", "x" * 256, "a\nb", "\x7f"):
        memory.refused("INVALID_ARGUMENT", "is no name of a segment", "r", key)
    for name in ("", "n" * 256, "a\tb", "\x85"):
        memory.refused("INVALID_ARGUMENT", "expected a name of 1 to 255 bytes", name, good)
    memory.refused("INVALID_ARGUMENT", "contains a NUL", "a\0b", good)
    memory.refused("INVALID_ARGUMENT", "contains a NUL", "a", good + "\0b")
    for size, offset in ((0, 0), (65, 0), (64, 1), (1, 64), (1, (1 << 64) - 1), ((1 << 64) - 1, 1), ((1 << 64) - 1, 0),
                         (1 << 63, 1 << 63)):
        memory.refused("INVALID_ARGUMENT", f"{size} bytes at offset {offset} are not within segment .* of 64 bytes", "r",
                       good, size, offset)
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink(path_of(good), path)):
        os.unlink(bad)
        make(bad)
        memory.refused("INVALID_ARGUMENT", "cannot be opened|is no shared memory", "r", "/" + os.path.basename(bad), 1)
        if os.path.isdir(bad) and not os.path.islink(bad):
            os.rmdir(bad)
            open(bad, "w").close()
    assert not memory.status()
    before = descriptors()
    memory.register("x" * 255, good, 64)
    assert descriptors() == before + 1 and list(memory.status()) == ["x" * 255]
    memory.unregister()
    assert descriptors() == before


def whose_segments():
    if os.geteuid():
        raise Skip("only root can make segments of another user")
    foreign = segment(64)
    os.chown(path_of(foreign), 65534, 65534)
    memory.refused("PERMISSION_DENIED", "belongs to user 65534, the server runs as user 0", "r", foreign)
    named = segment(64, "bw-other")
    os.chown(path_of(named), 65534, 65534)
    for prefix in ("bw-other", "/bw-other"):
        with Server(package("double"), f"--shared-memory={prefix}") as chosen:
            there = Regions(chosen.client)
            there.register("r", named, 64)
            there.register("s", named.lstrip("/"), 64)
            there.refused("PERMISSION_DENIED", "does not begin with 'bw-other'", "t", foreign)
            put(named, 0, np.ones(4, "<f4").tobytes())
            same(infer_value(there.infer(shared_request("double", "x", [1, 4], "r", 16))), np.full((1, 4), 2))


def requests_that_are_wrong():
    key = segment(4096)
    memory.register("r", key, 4096)
    call = memory.stub.ModelInfer
    good = lambda: shared_request("double", "x", [2, 4], "r", 32, output=("y", "r", 32, 2048))
    memory.infer(good())
    fails("NOT_FOUND", "tensor 'x': shared memory region 'q' is not registered", call,
          shared_request("double", "x", [2, 4], "q", 32))
    fails("NOT_FOUND", "tensor 'y': shared memory region 'q'", call,
          shared_request("double", "x", [2, 4], "r", 32, output=("y", "q", 32, 0)))
    for size, offset in ((32, 4065), (32, (1 << 63) - 1), ((1 << 63) - 1, (1 << 63) - 1), (4097, 0)):
        fails("INVALID_ARGUMENT", f"{size} bytes at shared_memory_offset {offset} are not within region 'r' of 4096 bytes",
              call, shared_request("double", "x", [2, 4], "r", size, offset))
        fails("INVALID_ARGUMENT", "'y': .* are not within region", call,
              shared_request("double", "x", [2, 4], "r", 32, output=("y", "r", size, offset)))
    request = good()
    request.inputs[0].parameters["shared_memory_offset"].uint64_param = (1 << 64) - 1
    fails("INVALID_ARGUMENT", f"at shared_memory_offset {(1 << 64) - 1} are not within", call, request)
    for size in (0, 28, 31, 33, 64):
        fails("INVALID_ARGUMENT", f"'x': {size} bytes of FP32 data, its shape needs 8 values", call,
              shared_request("double", "x", [2, 4], "r", size))
    for size in (0, 31):
        fails("INVALID_ARGUMENT", f"output 'y': shared_memory_byte_size is {size}, its values take 32 bytes", call,
              shared_request("double", "x", [2, 4], "r", 32, output=("y", "r", size, 0)))
    for field, text in (("shared_memory_region", "'shared_memory_region' is missing"),
                        ("shared_memory_byte_size", "'shared_memory_byte_size' is missing")):
        for tensors in ("inputs", "outputs"):
            request = good()
            del getattr(request, tensors)[0].parameters[field]
            fails("INVALID_ARGUMENT", text, call, request)
    request = infer_request("double", {"x": np.ones((1, 4))})
    request.inputs[0].parameters["shared_memory_offset"].int64_param = 0
    fails("INVALID_ARGUMENT", "'shared_memory_region' is missing", call, request)
    for field, kind, value in (("region", "int64_param", 1), ("byte_size", "string_param", "32"), ("offset", "bool_param", True),
                               ("byte_size", "int64_param", -32), ("offset", "int64_param", -1),
                               ("offset", "double_param", 4.0)):
        request = good()
        setattr(request.inputs[0].parameters["shared_memory_" + field], kind, value)
        fails("INVALID_ARGUMENT", f"'x': the parameter 'shared_memory_{field}' is no", call, request)
        request = good()
        request.outputs[0].parameters["shared_memory_" + field].Clear()
        fails("INVALID_ARGUMENT", f"'y': the parameter 'shared_memory_{field}' is no", call, request)
    request = good()
    request.inputs[0].parameters["shared_memory_colour"].int64_param = 1
    fails("UNIMPLEMENTED", "'shared_memory_colour' is not supported", call, request)
    request = good()
    request.inputs[0].contents.fp32_contents.extend([0] * 8)
    fails("INVALID_ARGUMENT", "'x' has contents although it lies in shared memory", call, request)
    request = good()
    request.raw_input_contents.append(bytes(32))
    fails("INVALID_ARGUMENT", "1 raw_input_contents for 0 inputs that are not in shared memory", call, request)
    request = inference_pb2.ModelInferRequest(model_name="sum")
    lies(request.inputs.add(name="a", datatype="FP32", shape=[1, 3]), "r", 12)
    request.inputs.add(name="b", datatype="FP32", shape=[1, 3])
    request.raw_input_contents.extend([bytes(12)] * 2)
    fails("INVALID_ARGUMENT", "2 raw_input_contents for 1 inputs that are not", call, request)
    request = good()
    for _ in range(200):
        request.inputs.append(request.inputs[0])
    fails("INVALID_ARGUMENT", "'x' is given twice", call, request)
    for bad in (np.nan, np.inf):
        put(key, 0, np.array([0, 1, 2, 3, 4, bad, 6, 7], "<f4").tobytes())
        fails("INVALID_ARGUMENT", "element 5 is (-?nan|inf), expected finite", call, good())
    put(key, 0, bytes(32))
    memory.infer(good())
    fails("UNIMPLEMENTED", "", server.client.channel.unary_unary("/inference.GRPCInferenceService/CudaSharedMemoryStatus"),
          b"")
    memory.unregister()


def segments_that_change():
    size = 1 << 16
    x = rng.standard_normal((16, 1024)).astype("<f4")
    key = segment(2 * size)
    memory.register("r", key, 2 * size)
    put(key, 0, x.tobytes())
    request = shared_request("wide", "x", x.shape, "r", size, output=("y", "r", size, size))
    memory.infer(request)
    # Truncated: a clean refusal for the input, and for the output, which is not made longer again.
    for left in (0, 1, size - 1):
        os.truncate(path_of(key), left)
        fails("INVALID_ARGUMENT", "'x': .*region 'r': segment '.*' has become shorter", memory.stub.ModelInfer,
              shared_request("wide", "x", x.shape, "r", size))
        fails("INVALID_ARGUMENT", "'y': .*region 'r': segment '.*' has become shorter", memory.stub.ModelInfer, request)
    os.truncate(path_of(key), 2 * size - 1)
    put(key, 0, x.tobytes())
    fails("INVALID_ARGUMENT", "region 'r': segment '.*' has become shorter", memory.stub.ModelInfer, request)
    assert os.path.getsize(path_of(key)) == 2 * size - 1
    os.truncate(path_of(key), 2 * size)
    memory.infer(request)
    # Unlinked, and its name taken by something else: the region stays what it was.
    reader = os.open(path_of(key), os.O_RDWR)
    for replace in (lambda: None, lambda: os.mkdir(path_of(key)), lambda: (os.rmdir(path_of(key)), os.mkfifo(path_of(key))),
                    lambda: (os.unlink(path_of(key)), os.symlink("/etc/passwd", path_of(key)))):
        if os.path.isfile(path_of(key)) and not os.path.islink(path_of(key)):
            os.unlink(path_of(key))
        replace()
        os.pwrite(reader, bytes(size), size)
        memory.infer(request)
        same(np.frombuffer(os.pread(reader, size, size), "<f4"), 2 * x.ravel())
    os.close(reader)
    memory.unregister()


def ask_meanwhile(disturb, ask, refusal):
    """Asks for two seconds while a thread disturbs the segment: how often it was answered, and refused for that reason."""
    stop, answers = threading.Event(), {"good": 0, "refused": 0}
    thread = threading.Thread(target=disturb, args=(stop,))
    thread.start()
    try:
        until = time.time() + 2
        while time.time() < until:
            try:
                ask()
                answers["good"] += 1
            except grpc.RpcError as error:
                assert error.code().name == "INVALID_ARGUMENT" and re.search(refusal, error.details()), error
                answers["refused"] += 1
    finally:
        stop.set()
        thread.join()
    return answers


def values_that_change_while_they_are_read():
    """Finite or refused: never a NaN in the answer, never an error of the server's."""
    key = segment(1 << 21)
    memory.register("r", key, 1 << 21)
    x = np.ones((256, 1024), "<f4")
    fd = os.open(path_of(key), os.O_RDWR)
    put(key, 0, x.tobytes())

    def scribble(stop):
        nan, one, i = np.full(1024, np.nan, "<f4").tobytes(), np.ones(1024, "<f4").tobytes(), 0
        while not stop.is_set():
            os.pwrite(fd, (nan, one)[i % 2], 4096 * (i * 37 % 256))
            os.pwrite(fd, one, 4096 * (i * 37 % 256))
            i += 1

    def finite():
        reply = memory.stub.ModelInfer(shared_request("wide", "x", x.shape, "r", x.nbytes), timeout=30 * SLOW)
        assert np.isfinite(infer_value(reply)).all()

    answers = ask_meanwhile(scribble, finite, "expected finite|changed while it was read")
    os.close(fd)
    print(f"# {answers}")
    assert sum(answers.values()) > 5, answers
    memory.unregister()


def a_segment_that_is_truncated_again_and_again():
    """In the middle of reads too: answers of old values or zeros, or a clean refusal, and a server that lives on."""
    size = 256 * 4096
    key = segment(size)
    memory.register("r", key, size)
    x = np.ones((256, 1024), "<f4")
    put(key, 0, x.tobytes())
    request = shared_request("wide", "x", x.shape, "r", size)

    def cut(stop):
        i = 0
        while not stop.is_set():
            os.truncate(path_of(key), 4096 * (i * 61 % 256))
            os.truncate(path_of(key), size)
            i += 1

    def old_or_zero():
        assert np.isin(infer_value(memory.stub.ModelInfer(request, timeout=30 * SLOW)), (0, 2)).all()

    answers = ask_meanwhile(cut, old_or_zero, "has become shorter")
    print(f"# {answers}")
    assert answers["refused"] > 5, answers
    memory.unregister()


def no_more_than_the_limit():
    key = segment(64)
    before = descriptors()
    most = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 4)
    for i in range(most):
        memory.register(f"region {i}", key, 64)
    memory.refused("RESOURCE_EXHAUSTED", f"{most} are registered, which is the most: unregister some", "one more", key)
    for i in range(most, 10000):
        memory.refused("RESOURCE_EXHAUSTED", "which is the most", f"region {i}", key)
    assert len(memory.status()) == most and descriptors() == before + most
    for i in range(0, most, 2):
        memory.unregister(f"region {i}")
    assert sorted(memory.status()) == sorted(f"region {i}" for i in range(1, most, 2))
    memory.unregister()
    assert not memory.status() and descriptors() == before
    # Few descriptors: connections get theirs all the same.
    with Server(package("double"), "--shared-memory", before=("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")) as few:
        there, i = Regions(few.client), 0
        while i < 64:
            there.register(f"region {i}", key, 64)
            i += 1
        there.refused("RESOURCE_EXHAUSTED", "64 are registered, which is the most", "one more", key)
        put(key, 0, np.ones(4, "<f4").tobytes())
        for _ in range(3):
            again = Client(few.address)
            same(infer_value(Regions(again).infer(shared_request("double", "x", [1, 4], "region 1", 16))),
                 np.full((1, 4), 2))
            again.channel.close()


def unregistered_under_load():
    """Requests end well or hear that the region is gone; what runs keeps it, and no descriptor is left."""
    before = descriptors()
    keys = [segment(1 << 16) for _ in range(4)]
    x = rng.standard_normal((2, 1024)).astype("<f4")
    for key in keys:
        put(key, 0, x.tobytes())
    stop, wrong, counts = threading.Event(), [], {"good": 0, "gone": 0}

    def score(number):
        client = Client(server.address)
        mine = Regions(client)
        while not stop.is_set():
            offset = 8192 * (1 + number)
            request = shared_request("wide", "x", x.shape, f"r{number % 4}", x.nbytes,
                                     output=("y", f"r{number % 4}", x.nbytes, offset))
            try:
                mine.infer(request)
                same(np.frombuffer(get(keys[number % 4], offset, x.nbytes), "<f4").reshape(x.shape), 2 * x)
                counts["good"] += 1
            except Exception as error:
                if getattr(error, "code", lambda: None)() is None or error.code().name != "NOT_FOUND":
                    wrong.append(repr(error))
                    return
                counts["gone"] += 1
        client.channel.close()

    threads = [threading.Thread(target=score, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    until = time.time() + 2
    rounds = 0
    try:
        while time.time() < until:
            for i, key in enumerate(keys):
                memory.register(f"r{i}", key, 1 << 16)
            assert len(memory.status()) == 4
            time.sleep(0.01)
            memory.unregister("r0")
            memory.unregister()
            rounds += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(f"# {counts}, {rounds} rounds")
    assert not wrong, wrong
    assert counts["good"] > 10 and counts["gone"] > 10, counts
    memory.unregister()
    assert not memory.status()
    # Connections of the threads go when the server notices.
    until = time.time() + 10 * SLOW
    while descriptors() > before and time.time() < until:
        time.sleep(0.05)
    assert descriptors() <= before, (descriptors(), before)


def a_request_keeps_its_region():
    """Unregistered while the device is at it: the answer still goes where it was asked to."""
    key = segment(65536)
    x = np.zeros((1, 1, 32, 32), "<f4")
    with Server(quantized(), *SLOW_DEVICE, "--shared-memory") as slow:
        there = Regions(slow.client)
        expected = infer_value(slow.client.kserve.ModelInfer(slow_request(), timeout=60 * SLOW))
        put(key, 0, x.tobytes())
        put(key, 32768, b"\xff" * expected.nbytes)
        there.register("r", key, 65536)
        call = slow.client.kserve.ModelInfer.future(
            shared_request("slow", "image", x.shape, "r", x.nbytes,
                           output=("probabilities", "r", expected.nbytes, 32768)), timeout=60 * SLOW)
        time.sleep(0.3)
        there.unregister("r")
        assert not there.status() and not call.done()
        assert call.exception() is None, call.exception()
        same(np.frombuffer(get(key, 32768, expected.nbytes), "<f4").reshape(expected.shape), expected)


def tritons_own_client():
    """tritonclient, where it is installed: its own segments, parameters and readers."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    imports = "import tritonclient.grpc, tritonclient.utils.shared_memory"
    pythons = [os.environ.get("BW_TRITONCLIENT_PYTHON"), os.path.join(os.environ["BW_TOP"], "build/peers/bin/python"),
               "/usr/bin/python3"]
    for python in filter(None, pythons):
        if os.access(python, os.X_OK) and not subprocess.run([python, "-c", imports], capture_output=True,
                                                             env=environment).returncode:
            break
    else:
        raise Skip("tritonclient[grpc] is neither in build/peers nor with /usr/bin/python3: name a Python that has it in "
                   "BW_TRITONCLIENT_PYTHON")
    done = subprocess.run([python, os.path.join(os.path.dirname(os.path.abspath(__file__)), "triton_client.py"),
                           server.address], capture_output=True, text=True, timeout=60 * SLOW, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not memory.status()


def it_ends_well():
    left = segment(64)
    memory.register("still there at the end", left, 64)
    wrong = [line for line in server.text().splitlines() if " info " not in line]
    assert not wrong, wrong
    with server:
        pass


run([off_unless_asked_for, status_register_unregister, the_same_bits_in_and_out, a_region_too_large_to_map, other_number_types,
     beside_values_in_the_message, pictures, segments_that_are_none, whose_segments, requests_that_are_wrong,
     segments_that_change, values_that_change_while_they_are_read,
     a_segment_that_is_truncated_again_and_again, no_more_than_the_limit, unregistered_under_load,
     a_request_keeps_its_region, tritons_own_client, it_ends_well])
