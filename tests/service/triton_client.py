# SPDX-License-Identifier: Apache-2.0
"""triton_client.py ADDRESS: scores with tritonclient through its shared memory; exit code 0 if the values are right."""
import os
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm

client = triton.InferenceServerClient(sys.argv[1])
assert "system_shared_memory" in client.get_server_metadata().extensions
x = np.random.default_rng(2).standard_normal((2, 5, 3)).astype(np.float32)
keys = {name: f"/bw-triton-{os.getpid()}-{name}" for name in ("in", "out")}
handles = {name: shm.create_shared_memory_region(f"{name}put", key, 4096) for name, key in keys.items()}
try:
    for name, key in keys.items():
        client.register_system_shared_memory(f"{name}put", key, 4096)
    status = client.get_system_shared_memory_status(as_json=True)["regions"]
    assert sorted(status) == ["input", "output"] and status["input"]["key"] == keys["in"], status
    shm.set_shared_memory_region(handles["in"], [x[0], x[1]])
    inputs = [triton.InferInput(name, list(x[0].shape), "FP32") for name in "ab"]
    for number, tensor in enumerate(inputs):
        tensor.set_shared_memory("input", x[0].nbytes, offset=number * x[0].nbytes)
    sum_there, difference_here = triton.InferRequestedOutput("y"), triton.InferRequestedOutput("d")
    sum_there.set_shared_memory("output", 1024, offset=512)
    result = client.infer("sum", inputs, outputs=[sum_there, difference_here])
    output = result.get_output("y")
    got = shm.get_contents_as_numpy(handles["out"], np.float32, output.shape, offset=512)
    assert (got == x[0] + x[1]).all(), got
    assert (result.as_numpy("d") == x[0] - x[1]).all()
    inputs[0].set_data_from_numpy(x[1])  # now in the message again
    result = client.infer("sum", inputs)
    assert (result.as_numpy("y") == x[1] + x[1]).all()
    client.unregister_system_shared_memory("input")
    try:
        client.infer("sum", inputs)
        sys.exit("no error for a region that is not registered")
    except triton.InferenceServerException as error:
        assert "NOT_FOUND" in str(error) and "'input' is not registered" in str(error), error
    client.unregister_system_shared_memory()
    assert not client.get_system_shared_memory_status().regions
finally:
    for handle in handles.values():
        shm.destroy_shared_memory_region(handle)
