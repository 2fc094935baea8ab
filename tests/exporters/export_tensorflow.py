"""Writes ONNX files from Keras by tf2onnx: `export_tensorflow.py FOLDER [name ...]`.

For each file NAME.onnx also NAME.npz with inputs and the outputs that TensorFlow gives (`in_0`, `out_0`, ...).
"""

import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow as tf
import tf2onnx
from tensorflow import keras
from tensorflow.keras import layers as L


def mlp():
    return keras.Sequential([L.Input((12,)), L.Dense(16, "relu"), L.BatchNormalization(), L.Dense(5, "softmax")])


def cnn():
    return keras.Sequential([
        L.Input((24, 24, 3)), L.Conv2D(8, 3, 2, "same", activation="relu"), L.MaxPooling2D(2, padding="same"),
        L.Conv2D(12, 3, activation="relu6"), L.AveragePooling2D(2), L.Flatten(), L.Dense(6)])


def separable():
    x = i = L.Input((32, 32, 3))
    x = L.Conv2D(8, 3, 2, "same", use_bias=False)(x)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = L.Conv2D(8, 1)(L.Activation("swish")(L.BatchNormalization()(y)))
    x = L.Add()([x, y])
    gate = L.Dense(8, "sigmoid")(L.Dense(4, "relu")(L.GlobalAveragePooling2D()(x)))
    x = L.Multiply()([x, L.Reshape((1, 1, 8))(gate)])
    return keras.Model(i, L.Dense(5)(L.GlobalMaxPooling2D()(L.SeparableConv2D(12, 3, dilation_rate=2)(x))))


def unet():
    x = i = L.Input((16, 16, 2))
    a = L.Conv2D(6, 3, padding="same", activation="elu")(x)
    b = L.Conv2D(8, 3, 2, "same", activation="selu")(a)
    c = L.Conv2DTranspose(6, 3, 2, "same")(b)
    d = L.UpSampling2D(2, interpolation="bilinear")(b)
    e = L.UpSampling2D(2)(L.ZeroPadding2D(1)(L.Cropping2D(1)(b)))
    return keras.Model(i, L.Conv2D(2, 1, activation="tanh")(L.Concatenate()([a, c, d, e])))


def recurrent():
    x = i = L.Input((9, 6))
    x = L.LSTM(8, return_sequences=True)(x)
    x = L.Bidirectional(L.GRU(5, return_sequences=True))(x)
    return keras.Model(i, L.Dense(3)(x))


def transformer():
    x = i = L.Input((10,), dtype="int32")
    x = L.Embedding(30, 16)(x)
    y = L.MultiHeadAttention(2, 8)(x, x)
    x = L.LayerNormalization()(x + y)
    y = L.Dense(16)(L.Dense(32, lambda t: keras.activations.gelu(t, approximate=True))(x))
    return keras.Model(i, L.Dense(4)(L.GlobalAveragePooling1D()(L.LayerNormalization()(x + y))))


def audio():
    x = i = L.Input((64, 1))
    x = L.Conv1D(8, 5, padding="causal", activation="softplus")(x)
    x = L.Conv1D(8, 3, dilation_rate=2, padding="same", activation="softsign")(x)
    x = L.MaxPooling1D(2)(L.LeakyReLU(negative_slope=0.2)(x))
    return keras.Model(i, L.Dense(3, "hard_sigmoid")(L.Flatten()(x)))


MODELS = [(mlp, 11), (cnn, 12), (separable, 13), (unet, 14), (recurrent, 15), (transformer, 16), (audio, 18)]


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for make, opset in MODELS:
        name = make.__name__
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        keras.utils.set_random_seed(7)
        model = make()
        for weight in model.weights:  # statistics as training leaves them
            if "moving" in weight.path or "gamma" in weight.path:
                weight.assign(np.random.uniform(0.5, 1.5, weight.shape))
        spec = model.inputs[0]
        shape = (2, *spec.shape[1:])
        x = np.random.randint(0, 30, shape).astype(np.int32) if "int" in str(spec.dtype) else np.random.randn(*shape).astype(np.float32)
        run = tf.function(lambda t: model(t, training=False))
        signature = [tf.TensorSpec((None, *shape[1:]), x.dtype, name="in_0")]
        path = folder / f"{name}.tf2onnx.{opset}.onnx"
        tf2onnx.convert.from_function(run, signature, opset=opset, output_path=str(path))
        np.savez(path.with_suffix(".npz"), in_0=x, out_0=run(x).numpy())
        print(path.name, flush=True)


if __name__ == "__main__":
    main()
