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

impl QuantParams {
    /// One scale and one zero point for a tensor.
    pub fn per_tensor(scale: f32, zero_point: i32, dtype: DType) -> QuantParams {
        QuantParams { scale: vec![scale], zero_point: vec![zero_point], axis: None, dtype }
    }

    /// Asymmetric `u8` parameters that cover `[lo, hi]`, which is widened to hold zero.
    ///
    /// ```text
    /// scale = (hi − lo) / 255,  zero_point = round_half_even(−lo / scale)
    /// ```
    ///
    /// In f64, stored as f32, as ONNX Runtime's `compute_scale_zp` does. A range that is a point
    /// gives scale 1 and zero point 0.
    pub fn u8_from_range(lo: f32, hi: f32) -> QuantParams {
        let (lo, hi) = (f64::from(lo.min(0.0)), f64::from(hi.max(0.0)));
        let scale = (hi - lo) / 255.0;
        if scale < f64::from(f32::MIN_POSITIVE) {
            return QuantParams::per_tensor(1.0, 0, DType::U8);
        }
        let zero_point = (-lo / scale).round_ties_even().clamp(0.0, 255.0);
        QuantParams::per_tensor(scale as f32, zero_point as i32, DType::U8)
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
    fn zero_has_a_code_of_its_own() {
        for (lo, hi) in [(-1.0, 3.0), (0.5, 2.0), (-7.0, -1.0), (0.0, 0.0)] {
            let q = QuantParams::u8_from_range(lo, hi);
            assert_eq!(q.dequantize(q.quantize(0.0, 0), 0), 0.0, "{lo}..{hi}");
        }
    }

    #[test]
    fn ties_go_to_the_even_code() {
        let q = QuantParams::per_tensor(1.0, 0, DType::I8);
        let codes: Vec<i32> =
            [0.5, 1.5, 2.5, -1.5, 300.0, -300.0].iter().map(|&x| q.quantize(x, 0)).collect();
        assert_eq!(codes, [0, 2, 2, -2, 127, -128]);
    }
}
