d{
  "engine": "octet 0.1.0",
  "contract": 1,
  "model": {
    "sha256": "9c5c6fdb4b066a0a5ad34e5d2876ec56e359f621a2c2e2c99da166e5d9cac4ff",
    "bytes": 690
  },
  "calibration": {
    "sha256": "30ed82cb3b4cf38fc5ba2905e29e3f5329a785da68dde7bad53c72253fb3ab6d",
    "samples": 8
  },
  "evaluation": null,
  "recipe": {
    "scheme": "auto",
    "weights": {
      "per_channel": true,
      "max_code": 127
    },
    "activations": "u8",
    "sixteen_bit": [],
    "ranges": "auto",
    "equalize": false,
    "smooth": "auto",
    "bias_correction": true,
    "rounding": "optimal",
    "keep_float": [],
    "gate": {
      "metric": null,
      "max_drop": null,
      "max_drop_per_slice": null,
      "min_agreement": null,
      "min_sqnr_db": null
    },
    "search": "auto",
    "target": "octet",
    "complete": false
  },
  "values": [
    {
      "name": "x",
      "dtype": "uint8",
      "scale": 0.021893538534641266,
      "zero_point": 124
    },
    {
      "name": "r",
      "dtype": "uint8",
      "scale": 0.024746675044298172,
      "zero_point": 0
    },
    {
      "name": "f",
      "dtype": "uint8",
      "scale": 0.024746675044298172,
      "zero_point": 0
    }
  ],
  "layers": [
    {
      "node": "conv",
      "max_code": 127
    },
    {
      "node": "fc",
      "max_code": 127
    }
  ]
}
