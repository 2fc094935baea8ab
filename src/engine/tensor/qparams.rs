//! Quantization parameters: `real = scale × (code − zero_point)`.

use super::DType;

/// How codes stand for reals, for a whole tensor or for each index along one axis.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantParams {
    /// Real width of one code: one value, or one for each index along `axis`.
    pub scale: Vec<f32>,
    /// The code that stands for zero: as many as scales.
    pub zero_point: Vec<i32>,
    /// The axis along which the values differ; `None` means one value for the tensor.
    pub axis: Option<usize>,
    /// What the codes are: `U8`, `I8`, or `I32` for a bias.
    pub dtype: DType,
}

/// What codes an activation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// `U8`, `I8`, `U16` or `I16`.
    pub dtype: DType,
    /// Whether zero has the code in the middle.
    pub symmetric: bool,
}

impl Codes {
    /// Eight bits, zero anywhere: what ONNX Runtime, OpenVINO and this program take.
    pub const U8: Codes = Codes { dtype: DType::U8, symmetric: false };
    /// Eight bits, zero at code 0: what TensorRT takes.
    pub const S8: Codes = Codes { dtype: DType::I8, symmetric: true };
    /// Sixteen bits, zero anywhere.
    pub const U16: Codes = Codes { dtype: DType::U16, symmetric: false };
    /// Sixteen bits, zero at code 0.
    pub const S16: Codes = Codes { dtype: DType::I16, symmetric: true };
}

impl QuantParams {
    /// One scale and one zero point for a tensor.
    pub fn per_tensor(scale: f32, zero_point: i32, dtype: DType) -> QuantParams {
        QuantParams { scale: vec![scale], zero_point: vec![zero_point], axis: None, dtype }
    }

    /// Parameters that cover `[lo, hi]`, which is widened to hold zero, with codes from `least` to `most`:
    ///
    /// ```text
    /// asymmetric:  scale = (hi − lo) / (most − least),  zero_point = round_half_even(least − lo / scale)
    /// symmetric:   scale = max(−lo, hi) / 127 (or 32767),  zero_point = the code in the middle: 0, or 128 of u8
    /// ```
    ///
    /// In f64, stored as f32, as ONNX Runtime's `compute_scale_zp` does; the symmetric form is TensorRT's. A range that
    /// is a point gives scale 1, and zero point 0 where it can be.
    pub fn from_range(codes: Codes, lo: f32, hi: f32) -> QuantParams {
        let (least, most) = code_range(codes.dtype);
        let (lo, hi) = (f64::from(lo.min(0.0)), f64::from(hi.max(0.0)));
        let middle = (least + most + 1) / 2;
        let scale = match codes.symmetric {
            true => hi.max(-lo) / (most - middle) as f64,
            false => (hi - lo) / (most - least) as f64,
        };
        let zero_point = match codes.symmetric {
            true => middle as f64,
            false if scale < f64::from(f32::MIN_POSITIVE) => 0.0,
            false => (least as f64 - lo / scale).round_ties_even().clamp(least as f64, most as f64),
        };
        let scale = if scale < f64::from(f32::MIN_POSITIVE) { 1.0 } else { scale as f32 };
        QuantParams::per_tensor(scale, zero_point as i32, codes.dtype)
    }

    /// The least range that has zero at the same code as [`QuantParams::from_range`] and leaves neither end outside: there
    /// an end may lie half a code beyond. Pixels between −1 and 1 have zero between two codes, and then every pixel lies
    /// between two codes as well, as far from them as can be.
    pub fn holding(codes: Codes, lo: f32, hi: f32) -> QuantParams {
        let mut params = QuantParams::from_range(codes, lo, hi);
        let (least, most) = code_range(codes.dtype);
        let zero = i64::from(params.zero_point[0]);
        if !codes.symmetric && lo < 0.0 && hi > 0.0 && least < zero && zero < most {
            let below = f64::from(-lo) / (zero - least) as f64;
            let above = f64::from(hi) / (most - zero) as f64;
            params.scale[0] = params.scale[0].max(below.max(above) as f32);
        }
        params
    }

    /// Least and largest real that a code of a whole tensor stands for.
    pub fn reals(&self) -> (f64, f64) {
        let (least, most) = code_range(self.dtype);
        let real = |code: i64| (code - i64::from(self.zero_point[0])) as f64 * f64::from(self.scale[0]);
        (real(least), real(most))
    }

    /// The code of a real: `saturate(round_half_even(x / scale) + zero_point)`, as ONNX
    /// `QuantizeLinear` has it. `index` is the position along `axis`, 0 for a whole tensor.
    pub fn quantize(&self, x: f32, index: usize) -> i32 {
        let (lo, hi) = code_range(self.dtype);
        let q = (x / self.scale[index]).round_ties_even() + self.zero_point[index] as f32;
        q.clamp(lo as f32, hi as f32) as i32
    }

    /// The real that a code stands for.
    pub fn dequantize(&self, code: i32, index: usize) -> f32 {
        (code - self.zero_point[index]) as f32 * self.scale[index]
    }
}

/// Least and largest code of an integer type.
pub fn code_range(dtype: DType) -> (i64, i64) {
    match dtype {
        DType::U8 => (0, 255),
        DType::I8 => (-128, 127),
        DType::U16 => (0, 65_535),
        DType::I16 => (-32_768, 32_767),
        _ => (i64::from(i32::MIN), i64::from(i32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_lies_between_the_first_code_and_the_last() {
        let signed = Codes { dtype: DType::I8, symmetric: false };
        for codes in [Codes::U8, Codes::S8, signed] {
            for (lo, hi) in [(-1.0, 1.0), (-1.0, 3.0), (-0.3, 0.7), (0.0, 2.0), (-7.0, 0.0), (-1e-9, 1.0)] {
                let (plain, held) =
                    (QuantParams::from_range(codes, lo, hi), QuantParams::holding(codes, lo, hi));
                assert_eq!(held.zero_point, plain.zero_point);
                assert!((1.0..1.005).contains(&(held.scale[0] / plain.scale[0])), "{held:?} {plain:?}");
                let ((least, most), step) = (held.reals(), f64::from(held.scale[0]));
                let inside = |x: f64| least - 1e-3 * step <= x && x <= most + 1e-3 * step;
                assert!(lo == -1e-9 || inside(lo.into()) && inside(hi.into()), "{held:?} {lo} {hi}");
            }
        }
        // Pixels from −1 to 1: the zero point is no half any more, so that they are not all half a code off.
        let held = QuantParams::holding(Codes::U8, -1.0, 1.0);
        assert_eq!((held.scale[0], held.zero_point[0]), (1.0 / 127.0, 128));
        let off = |params: &QuantParams| -> f32 {
            let pixels = (0..256).map(|k| k as f32 / 127.5 - 1.0);
            pixels.map(|x| (params.dequantize(params.quantize(x, 0), 0) - x).powi(2)).sum()
        };
        assert!(off(&held) < 0.4 * off(&QuantParams::from_range(Codes::U8, -1.0, 1.0)));
    }

    #[test]
    fn zero_has_a_code_of_its_own_and_the_range_is_covered() {
        let signed = Codes { dtype: DType::I8, symmetric: false };
        let middle = Codes { dtype: DType::U8, symmetric: true };
        for codes in [Codes::U8, Codes::S8, Codes::U16, Codes::S16, signed, middle] {
            for (lo, hi) in [(-1.0, 3.0), (0.5, 2.0), (-7.0, -1.0), (0.0, 0.0), (-1e-44, 1e-44)] {
                let q = QuantParams::from_range(codes, lo, hi);
                assert_eq!(q.dequantize(q.quantize(0.0, 0), 0), 0.0, "{codes:?}, {lo}..{hi}");
                let (least, most) = q.reals();
                let step = f64::from(q.scale[0]);
                assert!(
                    least <= f64::from(lo) + 0.51 * step && f64::from(hi) <= most + 0.51 * step,
                    "{codes:?}, {lo}..{hi}: {least}..{most}"
                );
            }
        }
        assert_eq!(QuantParams::from_range(Codes::S8, -1.0, 2.54).scale, [0.02]);
        assert_eq!(QuantParams::from_range(middle, -1.0, 2.54).zero_point, [128]);
        assert_eq!(QuantParams::from_range(signed, 0.0, 2.55).zero_point, [-128]);
    }

    #[test]
    fn ties_go_to_the_even_code() {
        let q = QuantParams::per_tensor(1.0, 0, DType::I8);
        let codes: Vec<i32> =
            [0.5, 1.5, 2.5, -1.5, 300.0, -300.0].iter().map(|&x| q.quantize(x, 0)).collect();
        assert_eq!(codes, [0, 2, 2, -2, 127, -128]);
    }
}
