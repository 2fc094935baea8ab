//! Data for the tests of the kernels: numbers that repeat and geometries that are awkward.

use super::isa::Isa;
use super::{Activation, Epilogue, SumForm, SumScales, Window};
use std::sync::LazyLock;

/// Knuth's linear congruential generator: the same numbers on every run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Codes, a quarter of them 0 or 255.
    pub(super) fn u8s(&mut self, len: usize) -> Vec<u8> {
        let code = |v: u32| match v >> 8 & 7 {
            0 => 0,
            1 => 255,
            _ => v as u8,
        };
        (0..len).map(|_| code(self.next())).collect()
    }

    /// Weight codes, a quarter of them -128 or 127.
    pub(super) fn i8s(&mut self, len: usize) -> Vec<i8> {
        let code = |v: u32| match v >> 8 & 7 {
            0 => -128,
            1 => 127,
            _ => v as i8,
        };
        (0..len).map(|_| code(self.next())).collect()
    }

    /// A small window: kernel up to 4, stride up to 3, dilation up to 2, padding up to 3, often more than the kernel.
    pub(super) fn window(&mut self) -> Window {
        loop {
            let mut pair = |least: usize, most: usize| {
                let mut one = || least + self.next() as usize % (most - least + 1);
                (one(), one())
            };
            let (input, kernel, stride) = (pair(1, 9), pair(1, 4), pair(1, 3));
            let (dilation, pad, (batch, _)) = (pair(1, 2), pair(0, 3), pair(1, 3));
            let fits = |len: usize, pad: usize, kernel: usize, dilation: usize| {
                len + 2 * pad > (kernel - 1) * dilation
            };
            if fits(input.0, pad.0, kernel.0, dilation.0) && fits(input.1, pad.1, kernel.1, dilation.1) {
                return window(batch, input, kernel, stride, dilation, pad);
            }
        }
    }

    /// Floats from -4 to 4.
    pub(super) fn f32s(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() as f32 / (1u32 << 28) as f32 - 4.0).collect()
    }
}

/// A window whose output size follows from symmetric padding `pad`; kernel, stride and dilation are (height, width).
pub(super) fn window(
    batch: usize,
    (in_h, in_w): (usize, usize),
    (kernel_h, kernel_w): (usize, usize),
    (stride_h, stride_w): (usize, usize),
    (dilation_h, dilation_w): (usize, usize),
    (pad_top, pad_left): (usize, usize),
) -> Window {
    let out = |len: usize, kernel: usize, stride: usize, dilation: usize, pad: usize| {
        (len + 2 * pad - (kernel - 1) * dilation - 1) / stride + 1
    };
    Window {
        batch,
        in_h,
        in_w,
        out_h: out(in_h, kernel_h, stride_h, dilation_h, pad_top),
        out_w: out(in_w, kernel_w, stride_w, dilation_w, pad_left),
        kernel_h,
        kernel_w,
        stride_h,
        stride_w,
        dilation_h,
        dilation_w,
        pad_top,
        pad_left,
    }
}

/// Windows of every kind: strides 1 to 3, dilation, padding, one row, one pixel, more padding than image.
pub(super) fn windows() -> Vec<Window> {
    vec![
        window(1, (1, 1), (1, 1), (1, 1), (1, 1), (0, 0)),
        window(2, (7, 5), (1, 1), (1, 1), (1, 1), (0, 0)),
        window(1, (9, 8), (1, 1), (2, 2), (1, 1), (0, 0)),
        window(1, (8, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
        window(3, (7, 6), (3, 3), (2, 2), (1, 1), (1, 1)),
        window(1, (11, 10), (3, 3), (3, 3), (1, 1), (0, 1)),
        window(2, (9, 9), (5, 5), (1, 1), (1, 1), (2, 2)),
        window(1, (12, 13), (5, 5), (2, 3), (1, 1), (2, 1)),
        window(1, (10, 11), (3, 3), (1, 1), (2, 2), (2, 2)),
        window(1, (9, 10), (2, 3), (1, 2), (3, 2), (1, 3)),
        window(2, (1, 19), (1, 5), (1, 2), (1, 1), (0, 2)),
        window(1, (14, 14), (7, 7), (2, 2), (1, 1), (3, 3)),
        window(1, (2, 3), (3, 3), (1, 1), (1, 1), (2, 2)),
        window(1, (20, 33), (4, 2), (1, 1), (1, 1), (1, 0)),
        // One more row and column than symmetric padding gives, as `SAME_UPPER` does.
        Window { out_h: 4, out_w: 4, ..window(1, (8, 8), (3, 3), (2, 2), (1, 1), (0, 0)) },
    ]
}

/// Epilogues of every kind over a bias and a residual.
pub(super) fn epilogues<'a>(bias: &'a [f32], residual: &'a [f32]) -> [Epilogue<'a>; 5] {
    let (bias, residual) = (Some(bias), Some(residual));
    let silu = Some(Activation::Silu);
    [
        Epilogue::NONE,
        Epilogue { bias, lo: 0.0, hi: 6.0, ..Epilogue::NONE },
        Epilogue { bias, residual, lo: 0.0, ..Epilogue::NONE },
        Epilogue { bias, activation: silu, ..Epilogue::NONE },
        Epilogue { residual, activation: silu, hi: 1.0, ..Epilogue::NONE },
    ]
}

/// Where the channels used lie within the pixels of both tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channels {
    pub(super) inputs: usize,
    pub(super) in_stride: usize,
    pub(super) in_offset: usize,
    pub(super) outputs: usize,
    pub(super) out_stride: usize,
    pub(super) out_offset: usize,
}

/// Channels that are all of a pixel.
pub(super) fn dense(inputs: usize, outputs: usize) -> Channels {
    Channels { inputs, in_stride: inputs, in_offset: 0, outputs, out_stride: outputs, out_offset: 0 }
}

/// A sum that saturates at both ends, and its formula.
pub(super) static ADDED: LazyLock<(SumScales, SumForm)> = LazyLock::new(|| {
    let scales =
        SumScales { own: (0.02113, 100), other: (0.03371, 60), result: (0.03019, 120), clamp: (3, 250) };
    (scales, SumForm::fit(&scales).expect("a formula"))
});

/// Sums of `codes` and `other` by definition.
pub(super) fn added(codes: &[u8], other: &[u8]) -> Vec<u8> {
    let mut sums = vec![0; codes.len()];
    ADDED.0.add(Isa::Scalar, codes, other, &mut sums);
    sums
}
