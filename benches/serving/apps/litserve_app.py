"""LitServe and ONNX Runtime, JSON only: LitServe parses the body before an application sees it.

    MODEL=x.onnx python litserve_app.py PORT WORKERS
"""

import os
import sys

import litserve
import numpy
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.input, self.output = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

    def decode_request(self, request):
        tensor = request["inputs"][0]
        return numpy.asarray(tensor["data"], numpy.float32).reshape(tensor["shape"])

    def predict(self, x):
        return self.session.run(None, {self.input: x})[0]

    def encode_response(self, y):
        output = {"name": self.output, "datatype": "FP32", "shape": list(y.shape), "data": y.ravel().tolist()}
        return {"model_name": "m", "outputs": [output]}


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/v2/models/m/infer"), accelerator="cpu",
                                workers_per_device=int(sys.argv[2]))
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
