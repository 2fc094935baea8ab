//! Each rule of each target on a graph of a node or two. Those of ONNX Runtime were read off its optimized graphs
//! (1.32); the client test `lint.py` holds whole models against it.

use crate::engine::graph::ValueId;
use crate::engine::graph::op::{Binary, Op, Sliding, Unary};
use crate::engine::quant::Target;
use crate::engine::tensor::{DType, Tensor};

use super::testing::{Codes, GEMM, S8, Sketch, U8, check};
use super::{Severity, check as checker};

const OTHER: Codes = (0.2, 0, DType::U8);

fn ort(draw: impl FnOnce(&mut Sketch) -> Vec<ValueId>, want: &str) {
    check(Target::Onnxruntime, draw, want);
}

fn relu(s: &mut Sketch, x: ValueId) -> ValueId {
    s.node("relu", Op::Unary(Unary::Relu), &[x])
}

fn clip(s: &mut Sketch, x: ValueId) -> ValueId {
    let (lo, hi) = (s.constant(Tensor::scalar(0.0f32)), s.constant(Tensor::scalar(6.0f32)));
    s.node("clip", Op::Clip, &[x, lo, hi])
}

#[test]
fn onnxruntime_fuses_a_convolution_between_codes_of_one_type() {
    let conv = |codes: Codes, behind: Codes| {
        move |s: &mut Sketch| {
            let x = s.image("x");
            let x = s.pair(x, codes);
            let y = s.conv("c", x);
            vec![s.pair(y, behind)]
        }
    };
    ort(conv(U8, U8), "c=QLinearConv");
    ort(conv(S8, S8), "c=QLinearConv");
    // Codes with one reader become unsigned, so these types are one.
    ort(conv(U8, S8), "c=QLinearConv");
    let wide = (0.1, 0, DType::U16);
    ort(conv(wide, wide), "c-sixteen_bit");
    let real = |s: &mut Sketch| {
        let x = s.image("x");
        let x = s.pair(x, U8);
        vec![s.conv("c", x)]
    };
    ort(real, "c-result_is_real");
    let weights_only = |s: &mut Sketch| {
        let x = s.image("x");
        let y = s.conv("c", x);
        vec![s.pair(y, U8)]
    };
    ort(weights_only, "c-operand_is_real");
    let both = |s: &mut Sketch| {
        let x = s.image("x");
        let x = s.pair(x, U8);
        let y = s.conv("c", x);
        vec![s.pair(y, U8), y]
    };
    ort(both, "c-result_has_other_readers");
}

#[test]
fn onnxruntime_on_x86_leaves_signed_codes_with_two_readers_in_float() {
    let two = |codes: Codes| {
        move |s: &mut Sketch| {
            let x = s.image("x");
            let x = s.pair(x, codes);
            let (a, b) = (s.conv("a", x), s.conv("b", x));
            vec![s.pair(a, codes), s.pair(b, codes)]
        }
    };
    ort(two(S8), "a-signed_shared b-signed_shared");
    ort(two(U8), "a=QLinearConv b=QLinearConv");
}

#[test]
fn onnxruntime_drops_a_clamp_where_the_lowest_code_is_its_bound() {
    let behind = |codes: Codes, six: bool| {
        move |s: &mut Sketch| {
            let x = s.image("x");
            let x = s.pair(x, U8);
            let y = s.conv("c", x);
            let y = if six { clip(s, y) } else { relu(s, y) };
            vec![s.pair(y, codes)]
        }
    };
    ort(behind(U8, false), "c=QLinearConv relu=+");
    ort(behind((0.1, 5, DType::U8), false), "c-clamp_stays relu-clamp_stays");
    ort(behind(S8, false), "c-clamp_stays relu-clamp_stays");
    ort(behind((0.1, -128, DType::I8), false), "c=QLinearConv relu=+");
    ort(behind((6.0 / 255.0, 0, DType::U8), true), "c=QLinearConv clip=+");
    ort(behind((7.0 / 255.0, 0, DType::U8), true), "c-clamp_stays clip-clamp_stays");
}

#[test]
fn onnxruntime_needs_a_bias_in_codes_or_a_quantizer_behind() {
    let gemm = |float: bool, quantized: bool| {
        move |s: &mut Sketch| {
            let x = s.rows("x");
            let x = s.pair(x, U8);
            let (w, b) = (s.w(&[8, 8], Some(1)), if float { s.fb() } else { s.b() });
            let y = s.node("g", GEMM, &[x, w, b]);
            vec![if quantized { s.pair(y, U8) } else { y }]
        }
    };
    ort(gemm(false, true), "g=QGemm");
    ort(gemm(false, false), "g=QGemm");
    ort(gemm(true, true), "g=QGemm");
    ort(gemm(true, false), "g-bias_is_real");
}

#[test]
fn onnxruntime_makes_a_gemm_of_product_and_sum_where_it_knows_the_shapes() {
    let sum = |dims: &'static [usize], quantized: bool| {
        move |s: &mut Sketch| {
            let x = s.input("x", dims);
            let x = s.pair(x, U8);
            let (w, b) = (s.w(&[8, 8], Some(1)), s.fb());
            let m = s.node("m", Op::MatMul, &[x, w]);
            let y = s.node("a", Op::Binary(Binary::Add), &[m, b]);
            vec![if quantized { s.pair(y, U8) } else { y }]
        }
    };
    ort(sum(&[0, 3, 8], false), "m=MatMulIntegerToFloat a-not_quantized");
    ort(sum(&[1, 3, 8], false), "m-bias_in_gemm a-bias_in_gemm");
    ort(sum(&[1, 3, 8], true), "m=QGemm a=+");
    ort(sum(&[0, 8], false), "m-bias_in_gemm a-bias_in_gemm");
    ort(sum(&[0, 8], true), "m=QGemm a=+");
}

#[test]
fn onnxruntime_multiplies_matrices_with_a_real_result() {
    let matmul = |end: fn(&mut Sketch, ValueId) -> ValueId| {
        move |s: &mut Sketch| {
            let x = s.rows("x");
            let x = s.pair(x, U8);
            let w = s.w(&[8, 8], Some(1));
            let y = s.node("m", Op::MatMul, &[x, w]);
            vec![end(s, y)]
        }
    };
    ort(matmul(|_, y| y), "m=MatMulIntegerToFloat");
    ort(matmul(|s, y| s.pair(y, U8)), "m=QLinearMatMul");
    // A clamp that one node reads keeps it in float, a clamp that is the result does not.
    ort(matmul(relu), "m=MatMulIntegerToFloat relu-not_quantized");
    let root = |s: &mut Sketch, y| {
        let r = relu(s, y);
        s.node("root", Op::Unary(Unary::Sqrt), &[r])
    };
    ort(matmul(root), "m-clamp_on_reals relu-not_quantized root-not_quantized");
    let bare = |s: &mut Sketch| {
        let (x, w) = (s.rows("x"), s.w(&[8, 8], None));
        vec![s.node("m", Op::MatMul, &[x, w])]
    };
    ort(bare, "m=MatMulNBits");
}

#[test]
fn onnxruntime_passes_codes_through_what_keeps_their_parameters() {
    let pool = |behind: Codes, opset: i64| {
        move |s: &mut Sketch| {
            s.graph.opset = opset;
            let x = s.image("x");
            let x = s.pair(x, U8);
            let sliding = Sliding { kernel: vec![2, 2], ..Sliding::default() };
            let y = s.node("p", Op::MaxPool { sliding }, &[x]);
            vec![s.pair(y, behind)]
        }
    };
    ort(pool(U8, 17), "p=MaxPool");
    ort(pool(OTHER, 17), "p-unequal_parameters");
    ort(pool(U8, 11), "p-opset");
    // Q moves back across the pool to the convolution.
    let behind_conv = |s: &mut Sketch| {
        let x = s.image("x");
        let x = s.pair(x, U8);
        let y = s.conv("c", x);
        let y = relu(s, y);
        let sliding = Sliding { kernel: vec![2, 2], ..Sliding::default() };
        let y = s.node("p", Op::MaxPool { sliding }, &[y]);
        vec![s.pair(y, U8)]
    };
    ort(behind_conv, "c=QLinearConv relu=+ p=MaxPool");
    let bare = |s: &mut Sketch| {
        let x = s.image("x");
        let scale = s.constant(Tensor::scalar(0.1f32));
        let x = s.node("q", Op::QuantizeLinear { axis: 1 }, &[x, scale]);
        let x = s.node("dq", Op::DequantizeLinear { axis: 1 }, &[x, scale]);
        let x = s.node("f", Op::Flatten { axis: 1 }, &[x]);
        let x = s.node("q", Op::QuantizeLinear { axis: 1 }, &[x, scale]);
        vec![s.node("dq", Op::DequantizeLinear { axis: 1 }, &[x, scale])]
    };
    ort(bare, "f-no_zero_point");
}

#[test]
fn onnxruntime_adds_and_joins_codes_of_one_type_and_computes_the_rest_in_float() {
    let two = |op: fn() -> Op, a: Codes, b: Codes| {
        move |s: &mut Sketch| {
            let (x, y) = (s.image("x"), s.image("y"));
            let (x, y) = (s.pair(x, a), s.pair(y, b));
            let z = s.node("n", op(), &[x, y]);
            vec![s.pair(z, a)]
        }
    };
    ort(two(|| Op::Binary(Binary::Add), U8, OTHER), "n=QLinearAdd");
    ort(two(|| Op::Binary(Binary::Mul), S8, S8), "n=QLinearMul");
    ort(two(|| Op::Concat { axis: 1 }, U8, OTHER), "n=QLinearConcat");
    ort(two(|| Op::Binary(Binary::Sub), U8, U8), "n-no_integer_kernel");
    let constant = |weights: DType| {
        move |s: &mut Sketch| {
            s.weights = weights;
            let x = s.image("x");
            let (x, w) = (s.pair(x, U8), s.w(&[8, 1, 1], None));
            let y = s.node("n", Op::Binary(Binary::Add), &[x, w]);
            vec![s.pair(y, U8)]
        }
    };
    ort(constant(DType::I8), "n-types_differ");
    ort(constant(DType::U8), "n=QLinearAdd");
    let one = |op: fn() -> Op| {
        move |s: &mut Sketch| {
            let x = s.rows("x");
            let x = s.pair(x, U8);
            let y = s.node("n", op(), &[x]);
            vec![s.pair(y, U8)]
        }
    };
    ort(one(|| Op::Softmax { axis: -1, log: false, coerce_2d: false }), "n=QLinearSoftmax");
    ort(one(|| Op::Unary(Unary::Sigmoid)), "n=QLinearSigmoid");
    ort(one(|| Op::Unary(Unary::Tanh)), "n-no_integer_kernel");
}

#[test]
fn scales_along_a_wrong_axis_are_found() {
    let draw = |s: &mut Sketch| {
        let x = s.image("x");
        let x = s.pair(x, U8);
        let w = s.w(&[8, 8, 1, 1], Some(1));
        let y = s.conv_of("c", &[x, w]);
        vec![s.pair(y, U8)]
    };
    ort(draw, "c!axis");
    check(Target::Openvino, draw, "c-axis");
}

#[test]
fn tensorrt_takes_symmetric_codes_and_real_biases_only() {
    let trt = |codes: Codes, bias: bool, want: &str| {
        let draw = |s: &mut Sketch| {
            let x = s.image("x");
            let x = s.pair(x, codes);
            let (w, b) = (s.w(&[8, 8, 1, 1], Some(0)), if bias { s.b() } else { s.fb() });
            let y = s.conv_of("c", &[x, w, b]);
            vec![relu(s, y)]
        };
        check(Target::Tensorrt, draw, want);
    };
    trt(S8, false, "c=INT8 Convolution relu=+");
    trt(S8, true, "c!bias_dequantized relu=+");
    trt(U8, false, "c!codes_type relu=+");
    trt((0.1, 3, DType::I8), false, "c!zero_point relu=+");
}

#[test]
fn tensorrt_wants_only_the_skipping_operand_of_a_sum_quantized() {
    let residual = |both: bool| {
        move |s: &mut Sketch| {
            let x = s.image("x");
            let x = s.pair(x, S8);
            let (w, b) = (s.w(&[8, 8, 1, 1], Some(0)), s.fb());
            let mut y = s.conv_of("c", &[x, w, b]);
            if both {
                y = s.pair(y, S8);
            }
            vec![s.node("a", Op::Binary(Binary::Add), &[y, x])]
        }
    };
    check(Target::Tensorrt, residual(false), "c=INT8 Convolution a=+");
    check(Target::Tensorrt, residual(true), "c=INT8 Convolution a=INT8 ElementWise(residual)");
}

#[test]
fn joins_have_one_scale_where_the_target_wants_it() {
    let join = |a: Codes, b: Codes| {
        move |s: &mut Sketch| {
            let (x, y) = (s.image("x"), s.image("y"));
            let (x, y) = (s.pair(x, a), s.pair(y, b));
            let z = s.node("n", Op::Concat { axis: 1 }, &[x, y]);
            vec![s.pair(z, a)]
        }
    };
    let wide = (0.2, 0, DType::I8);
    for (target, rule) in [
        (Target::Tensorrt, "n-concat_scales"),
        (Target::Openvino, "n-concat_scales"),
        (Target::TfliteRules, "n!shared_scale"),
    ] {
        check(target, join(S8, wide), rule);
    }
    check(Target::Tensorrt, join(S8, S8), "n=+");
    check(Target::Openvino, join(S8, S8), "n=+");
    check(Target::TfliteRules, join(S8, S8), "n=CONCATENATION");
    check(Target::Octet, join(S8, wide), "n=QConcat");
}

#[test]
fn openvino_needs_activations_and_weights_in_codes() {
    let draw = |activations: bool| {
        move |s: &mut Sketch| {
            let mut x = s.image("x");
            if activations {
                x = s.pair(x, U8);
            }
            let y = s.conv("c", x);
            vec![relu(s, y)]
        }
    };
    check(Target::Openvino, draw(true), "c=INT8 Convolution relu=+");
    check(Target::Openvino, draw(false), "c-data_and_weights relu-not_quantized");
}

#[test]
fn tflite_rules_share_scales_and_fix_those_of_some_results() {
    let tflite = |op: fn() -> Op, before: Codes, behind: Codes, want: &str| {
        let draw = |s: &mut Sketch| {
            let x = s.rows("x");
            let x = s.pair(x, before);
            let y = s.node("n", op(), &[x]);
            vec![s.pair(y, behind)]
        };
        check(Target::TfliteRules, draw, want);
    };
    let softmax = || Op::Softmax { axis: -1, log: false, coerce_2d: false };
    tflite(softmax, S8, (1.0 / 256.0, -128, DType::I8), "n=SOFTMAX");
    tflite(softmax, S8, S8, "n!fixed_output");
    tflite(|| Op::Unary(Unary::Tanh), S8, (1.0 / 128.0, 0, DType::I8), "n=TANH");
    tflite(|| Op::Unary(Unary::Tanh), S8, (1.0 / 127.0, 0, DType::I8), "n!fixed_output");
    tflite(|| Op::Flatten { axis: 1 }, S8, S8, "n=RESHAPE");
    tflite(|| Op::Flatten { axis: 1 }, S8, (0.1, 1, DType::I8), "n!shared_scale");
    tflite(|| Op::Flatten { axis: 1 }, U8, U8, "n!codes_type");
    tflite(|| Op::Unary(Unary::Erf), S8, S8, "n-no_int8_operator");
    let conv = |bias: bool, scale: f32, want: &str| {
        let draw = |s: &mut Sketch| {
            let x = s.image("x");
            let x = s.pair(x, (scale, 0, DType::I8));
            let codes = s.constant(Tensor::from_slice(&[8, 8, 1, 1], &[3i8; 64]));
            let w = s.dq(codes, (0.01, 0, DType::I8));
            let b = if bias { s.b() } else { s.fb() };
            let y = s.conv_of("c", &[x, w, b]);
            let y = relu(s, y);
            vec![s.pair(y, S8)]
        };
        check(Target::TfliteRules, draw, want);
    };
    conv(true, 0.1, "c=CONV_2D relu=+");
    conv(true, 0.2, "c!bias_scale relu=+");
    conv(false, 0.1, "c!bias_is_real relu=+");
}

#[test]
fn octet_says_what_its_executor_does() {
    let draw = |codes: Codes| {
        move |s: &mut Sketch| {
            let x = s.image("x");
            let x = s.pair(x, codes);
            let y = s.conv("c", x);
            let y = relu(s, y);
            let y = s.pair(y, codes);
            let y = s.node("tanh", Op::Unary(Unary::Tanh), &[y]);
            vec![y]
        }
    };
    check(Target::Octet, draw(U8), "c=QConv relu=+ tanh-no_integer_kernel");
    check(Target::Octet, draw(S8), "c=QConv relu=+ tanh-no_integer_kernel");
    let silu = |behind: bool| {
        move |s: &mut Sketch| {
            let x = s.image("x");
            let x = s.pair(x, U8);
            let y = s.conv("c", x);
            let gate = s.node("gate", Op::Unary(Unary::Sigmoid), &[y]);
            let y = s.node("mul", Op::Binary(Binary::Mul), &[y, gate]);
            vec![if behind { s.pair(y, U8) } else { y }]
        }
    };
    check(Target::Octet, silu(true), "c=QConv gate=+ mul=+");
    check(Target::Octet, silu(false), "c=QConv gate-not_quantized mul-not_quantized");
}

/// The rules of the notes on a file.
fn notes(target: Target, draw: impl FnOnce(&mut Sketch) -> Vec<ValueId>) -> Vec<(Severity, &'static str)> {
    let mut sketch = Sketch::default();
    sketch.graph.outputs = draw(&mut sketch);
    let report = checker::lint(&sketch.graph, target);
    report.notes.iter().map(|n| (n.severity, n.rule)).collect()
}

#[test]
fn a_file_is_judged_as_a_whole() {
    let conv = |opset: i64| {
        move |s: &mut Sketch| {
            s.graph.opset = opset;
            let x = s.image("x");
            let x = s.pair(x, U8);
            let y = s.conv("c", x);
            vec![s.pair(y, U8)]
        }
    };
    // Some of the weights are above 64.
    assert_eq!(notes(Target::Onnxruntime, conv(17)), [(Severity::Warning, "saturation")]);
    // Codes of 16 bits: it multiplies reals, whose sums do not saturate.
    let wide = |s: &mut Sketch| {
        let codes = (0.1, 0, DType::U16);
        s.graph.opset = 21;
        let x = s.image("x");
        let x = s.pair(x, codes);
        let y = s.conv("c", x);
        vec![s.pair(y, codes)]
    };
    assert!(notes(Target::Onnxruntime, wide).iter().all(|(_, rule)| *rule != "saturation"));
    assert_eq!(notes(Target::Octet, conv(17)), []);
    assert_eq!(notes(Target::Octet, conv(12)), [(Severity::Error, "opset_per_axis")]);
    assert_eq!(notes(Target::Openvino, conv(23)), [(Severity::Note, "opset_new")]);
    let float = |s: &mut Sketch| {
        let x = s.image("x");
        vec![relu(s, x)]
    };
    assert_eq!(notes(Target::Octet, float), [(Severity::Warning, "not_quantized")]);
    let odd = |s: &mut Sketch| {
        let codes = s.constant(Tensor::zeros(DType::I8, &[4, 8]));
        let scale = s.constant(Tensor::from_slice(&[3], &[0.1f32; 3]));
        let w = s.node("w", Op::DequantizeLinear { axis: 0 }, &[codes, scale]);
        let x = s.rows("x");
        vec![s.node("m", Op::MatMul, &[x, w])]
    };
    assert_eq!(notes(Target::Octet, odd), [(Severity::Error, "scale_shape")]);
    let twice = |s: &mut Sketch| {
        let values: Vec<f32> = (0..128).map(|i| i as f32 / 10.0).collect();
        let codes: Vec<i8> = (0..128).map(|i| i as i8).collect();
        let (real, codes) =
            (s.constant(Tensor::from_slice(&[128], &values)), s.constant(Tensor::from_slice(&[128], &codes)));
        let w = s.dq(codes, S8);
        vec![s.node("a", Op::Binary(Binary::Add), &[w, real])]
    };
    assert_eq!(notes(Target::Octet, twice), [(Severity::Warning, "weights_twice")]);
    let bare = |s: &mut Sketch| {
        let w = s.constant(Tensor::from_slice(&[2], &[-1.0f32, 1.0]));
        let scale = s.constant(Tensor::scalar(0.1f32));
        let w = s.node("q", Op::QuantizeLinear { axis: 1 }, &[w, scale]);
        vec![s.dq(w, U8)]
    };
    let found = [(Severity::Error, "weights_without_zero_point"), (Severity::Note, "weights_in_float")];
    assert_eq!(notes(Target::Octet, bare), found);
}

#[test]
fn onnxruntime_rounds_activations_beside_codes_of_weights() {
    let product = |shape: [usize; 2], axis: Option<usize>, op: Op| {
        move |s: &mut Sketch| {
            let (x, w) = (s.rows("x"), s.w(&shape, axis));
            vec![s.node("m", op, &[x, w])]
        }
    };
    let gemm = |alpha, trans_b| Op::Gemm { alpha, beta: 1.0, trans_a: false, trans_b };
    let found = [(Severity::Warning, "rounded_activations")];
    for (shape, axis, op, want) in [
        ([8, 8], Some(1), Op::MatMul, &found[..]),
        ([8, 8], None, Op::MatMul, &found),
        ([8, 8], Some(1), gemm(1.0, false), &found),
        ([8, 8], Some(0), Op::MatMul, &[]),
        ([8, 8], Some(1), gemm(0.5, false), &[]),
        ([8, 8], Some(0), gemm(1.0, true), &[]),
    ] {
        assert_eq!(notes(Target::Onnxruntime, product(shape, axis, op.clone())), want, "{axis:?} {op:?}");
        assert_eq!(notes(Target::Octet, product(shape, axis, op)), []);
    }
    // Behind a Transpose rows have the scales, and the codes of an activation make an integer product of it.
    let turned = |coded: bool| {
        move |s: &mut Sketch| {
            let (x, w) = (s.rows("x"), s.w(&[8, 8], Some(0)));
            let x = if coded { s.pair(x, U8) } else { x };
            let w = s.node("t", Op::Transpose { perm: vec![1, 0] }, &[w]);
            vec![s.node("m", Op::MatMul, &[x, w])]
        }
    };
    assert_eq!(notes(Target::Onnxruntime, turned(false)), found);
    assert!(notes(Target::Onnxruntime, turned(true)).iter().all(|(_, rule)| *rule != "rounded_activations"));
}

#[test]
fn onnxruntime_does_not_open_shared_weights_in_its_exact_mode() {
    let twice = |dtype: DType, share: bool| {
        move |s: &mut Sketch| {
            s.weights = dtype;
            let x = s.rows("x");
            let w = s.w(&[8, 8], Some(1));
            let other = if share { w } else { s.w(&[8, 8], Some(1)) };
            let y = s.node("m", Op::MatMul, &[x, w]);
            vec![s.node("n", Op::MatMul, &[y, other])]
        }
    };
    let found = (Severity::Warning, "shared_weights");
    assert_eq!(notes(Target::Onnxruntime, twice(DType::I8, true)), [found]);
    assert_eq!(notes(Target::Onnxruntime, twice(DType::U8, true)), []);
    assert!(!notes(Target::Onnxruntime, twice(DType::I8, false)).contains(&found));
    let on_codes = |s: &mut Sketch| {
        let x = s.rows("x");
        let x = s.q(x, U8);
        let [scale, zero] = [Tensor::scalar(0.1f32), Tensor::scalar(0u8)].map(|t| s.constant(t));
        let (w, zeros) = (s.constant(Tensor::zeros(DType::I8, &[8, 8])), s.constant(Tensor::scalar(0i8)));
        let op = || Op::Other(crate::engine::graph::passes::casts::tests::named("QLinearMatMul"));
        let y = s.node("m", op(), &[x, scale, zero, w, scale, zeros, scale, zero]);
        let y = s.node("n", op(), &[y, scale, zero, w, scale, zeros, scale, zero]);
        vec![s.dq(y, U8)]
    };
    assert!(notes(Target::Onnxruntime, on_codes).contains(&found));
}

#[test]
fn onnxruntime_convolves_codes_of_any_sign_with_one_zero_point() {
    let conv = |x: DType, w: DType, zeros: usize| {
        move |s: &mut Sketch| {
            let image = s.image("x");
            let codes = s.q(image, (0.1, 0, x));
            let weights = s.constant(Tensor::zeros(w, &[8, 8, 1, 1]));
            let (zero_x, zero_w) =
                (s.constant(Tensor::zeros(x, &[])), s.constant(Tensor::zeros(w, &[zeros])));
            let op = Op::ConvInteger { sliding: Sliding::default(), groups: 1 };
            vec![s.node("c", op, &[codes, weights, zero_x, zero_w])]
        }
    };
    for (x, w) in [DType::U8, DType::I8].into_iter().flat_map(|x| [(x, DType::U8), (x, DType::I8)]) {
        ort(conv(x, w, 1), "c=ConvInteger");
        ort(conv(x, w, 8), "c!weights_per_axis");
    }
}
