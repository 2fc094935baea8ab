//! What ONNX Runtime 1.32 fuses on an x86 CPU: its rules for groups of DQ nodes, an operator and Q nodes, over the graph
//! that its earlier passes leave. A test holds the counts against its optimized graph.

use crate::engine::graph::Graph;
use crate::engine::graph::op::{Binary, Op, Reduce, Unary};
use crate::engine::tensor::DType;

use super::net::{Net, Params, on_codes};
use super::onnxruntime_codes::{self as codes, Dynamic};
use super::onnxruntime_passes::{Prepared, clamp_is_redundant, prepare};
use super::shapes::Shapes;
use super::{Finding, Judged};

/// Judges every node that computes.
pub(super) fn findings(graph: &Graph) -> Vec<Finding> {
    let file = Net::new(graph);
    let prepared = prepare(Net::new(graph), &Shapes::new(graph));
    let mut places = vec![None; graph.nodes.len()];
    for n in prepared.net.nodes() {
        if let Some(origin) = prepared.net.origin[n] {
            places[origin] = Some(n);
        }
    }
    let dynamic = Dynamic::of(&prepared.net);
    let judge = Judge { file: &file, prepared: &prepared };
    let mut judged: Vec<Option<Judged>> = vec![None; graph.nodes.len()];
    for n in 0..graph.nodes.len() {
        if let Some(place) = places[n] {
            let rewritten = place >= graph.nodes.len();
            let found = dynamic.judged(place);
            if found.is_some() || rewritten || file.is_of_interest(n) || judge.is_of_interest(place) {
                judged[n] = Some(found.unwrap_or_else(|| judge.node(place)));
            }
        } else if prepared.clamps.contains(&n) {
            judged[n] = Some(Judged::absorbed("the quantizer behind it cuts off at the same codes"));
        }
    }
    // What other nodes take over, once those are judged.
    for n in 0..graph.nodes.len() {
        let clamp = places[n].and_then(|place| judge.absorber(place));
        let gemm = prepared.added.get(&n).copied();
        if let Some(by) = clamp.or(gemm)
            && let Some(origin) = prepared.net.origin[by]
            && let Some(fate) = judged[origin].clone()
        {
            judged[n] = match fate.verdict {
                super::Verdict::Fuses => {
                    Some(Judged::absorbed(format!("`{}` takes it over", file.name(origin))))
                }
                _ if gemm.is_some() => Some(fate),
                _ => judged[n].take(),
            };
        }
    }
    let named = |(n, judged): (usize, Option<Judged>)| {
        let node = &graph.nodes[n];
        judged.map(|judged| judged.of(&node.name, node.op.name()))
    };
    judged.into_iter().enumerate().filter_map(named).collect()
}

/// A node with the Q and DQ nodes around it.
struct Group {
    /// DQ nodes before it, by operand.
    before: Vec<usize>,
    /// Q nodes behind it, or behind the clamp that follows.
    behind: Vec<usize>,
}

struct Judge<'a> {
    file: &'a Net,
    prepared: &'a Prepared,
}

impl Judge<'_> {
    fn net(&self) -> &Net {
        &self.prepared.net
    }

    fn is_of_interest(&self, n: usize) -> bool {
        self.net().is_of_interest(n)
    }

    /// The node whose group takes over a clamp.
    fn absorber(&self, clamp: usize) -> Option<usize> {
        let net = self.net();
        if !net.node(clamp).op.is_clamp() {
            return None;
        }
        let maker = net.maker(net.node(clamp).input(0)?)?;
        (self.clamp_behind(maker) == Some(clamp)).then_some(maker)
    }

    fn node(&self, n: usize) -> Judged {
        let node = self.net().node(n);
        if on_codes(node) {
            return codes::operator(self.net(), n);
        }
        if self.net().moves_codes(n) {
            return Judged::fuses(node.op.name());
        }
        let result = match &node.op {
            Op::Conv { .. } => self.conv(n),
            Op::MatMul => self.matmul(n),
            Op::Gemm { .. } => self.gemm(n),
            Op::Binary(Binary::Add) => self.same_types(n, "QLinearAdd", None),
            Op::Binary(Binary::Mul) => self.same_types(n, "QLinearMul", None),
            Op::AveragePool { .. } => self.same_types(n, "QLinearAveragePool", Some(1)),
            Op::GlobalAveragePool => self.same_types(n, "QLinearGlobalAveragePool", Some(1)),
            Op::Unary(Unary::LeakyRelu { .. }) => self.same_types(n, "QLinearLeakyRelu", Some(1)),
            Op::Unary(Unary::Sigmoid) => self.same_types(n, "QLinearSigmoid", Some(1)),
            Op::Softmax { log: false, .. } => self.same_types(n, "QLinearSoftmax", Some(1)),
            Op::Concat { .. } => self.same_types(n, "QLinearConcat", None),
            Op::Where => self.same_types(n, "QLinearWhere", Some(2)),
            Op::Split { .. } => self.moves(n, "Split", false),
            Op::MaxPool { .. } => self.max_pool(n),
            Op::Reduce { kind: Reduce::Max, .. } => self.moves(n, "ReduceMax", true),
            Op::Reduce { kind: Reduce::Min, .. } => self.moves(n, "ReduceMin", true),
            Op::Expand => self.moves(n, "Expand", false),
            Op::Flatten { .. } => self.moves(n, "Flatten", false),
            Op::Gather { .. } => self.moves(n, "Gather", false),
            Op::Reshape { .. } => self.moves(n, "Reshape", false),
            Op::Slice => self.moves(n, "Slice", false),
            Op::Squeeze => self.moves(n, "Squeeze", false),
            Op::Tile => self.moves(n, "Tile", false),
            Op::Transpose { .. } => self.moves(n, "Transpose", false),
            Op::Unsqueeze => self.moves(n, "Unsqueeze", false),
            Op::Other(o) if o.name == "Resize" => self.moves(n, "Resize", true),
            Op::Other(o) if o.name == "GatherElements" => self.moves(n, "GatherElements", false),
            Op::Other(o) if o.name == "ArgMax" => self.arg_max(n),
            _ => Err(self.never(n)),
        };
        result.unwrap_or_else(|judged| judged)
    }

    /// An operator that no rule names.
    fn never(&self, n: usize) -> Judged {
        let (net, op) = (self.net(), self.net().node(n).op.name());
        if net.node(n).op.is_clamp() {
            return match net.touches_codes(n) {
                true => self.clamp(n),
                false => Judged::float("not_quantized", "nothing around it is quantized", ""),
            };
        }
        match net.touches_codes(n) {
            true => Judged::float(
                "no_integer_kernel",
                format!(
                    "ONNX Runtime computes {op} on reals on a CPU: Q and DQ around it only cost time and accuracy"
                ),
                "leave out the Q and DQ nodes around it",
            ),
            false => Judged::float("not_quantized", "nothing around it is quantized", ""),
        }
    }

    /// A clamp that stays.
    fn clamp(&self, n: usize) -> Judged {
        let net = self.net();
        let behind = net.quantizers(net.node(n).outputs[0]);
        let Some(params) = behind.first().and_then(|&q| net.params(q)) else {
            return Judged::float("clamp_on_reals", "its result is not quantized", "");
        };
        Judged::float(
            "clamp_stays",
            format!(
                "codes with {} do not end where it clamps, so it is no part of the quantizer",
                params.text()
            ),
            "choose the range behind it from zero up, so that the lowest code stands for its lower bound",
        )
    }

    /// The one Relu or Clip that reads a node.
    fn clamp_behind(&self, n: usize) -> Option<usize> {
        let net = self.net();
        let readers: Vec<_> = net.node(n).outputs.iter().flat_map(|&o| net.readers(o)).collect();
        let [&(reader, _)] = readers[..] else { return None };
        let result = *net.node(reader).outputs.first()?;
        let clamps = net.node(reader).op.is_clamp();
        (clamps && net.readers(result).len() == 1 && !net.is_output(result)).then_some(reader)
    }

    /// The group of a node. `operands` are how many must be codes: all that are there where it is `None`.
    fn group(&self, n: usize, operands: Option<usize>, result_may_be_real: bool) -> Result<Group, Judged> {
        let net = self.net();
        let node = net.node(n);
        let given: Vec<usize> = (0..node.inputs.len()).filter(|&i| node.input(i).is_some()).collect();
        let (coded, real): (Vec<usize>, Vec<usize>) =
            given.iter().partition(|&&i| net.dequantizer(n, i).is_some());
        let clamp = self.clamp_behind(n);
        let ends = clamp.map_or(&node.outputs, |clamp| &net.node(clamp).outputs);
        let behind: Vec<usize> = ends.iter().flat_map(|&o| net.quantizers(o)).collect();
        if coded.is_empty() && behind.is_empty() {
            return Err(Judged::float("not_quantized", "nothing around it is quantized", ""));
        }
        if let Some(clamp) = clamp
            && !(behind.len() == 1 && clamp_is_redundant(net, clamp, behind[0]))
        {
            return Err(match behind[..] {
                [_, ..] => self.clamp(clamp),
                [] => Judged::float(
                    "clamp_on_reals",
                    format!("{} `{}` behind it works on reals", net.node(clamp).op.name(), net.name(clamp)),
                    format!("quantize the result of `{}`", net.name(clamp)),
                ),
            });
        }
        if coded.len() != operands.unwrap_or(given.len()) {
            return Err(self.real_operand(n, &real));
        }
        let before: Vec<usize> = coded.iter().filter_map(|&i| net.dequantizer(n, i)).collect();
        if behind.is_empty() {
            return match result_may_be_real {
                true => Ok(Group { before, behind }),
                false => Err(self.real_result(n)),
            };
        }
        let readers: usize = ends.iter().map(|&o| net.readers(o).len()).sum();
        let outputs = node.outputs.iter().any(|&o| net.is_output(o));
        if behind.len() != ends.len() || readers != behind.len() || outputs {
            let what = match outputs {
                true => "its result is an output of the model as well".to_owned(),
                false => format!("its result has {readers} readers, not one QuantizeLinear"),
            };
            let remedy = "quantize the result once, and let every reader dequantize those codes";
            return Err(Judged::float("result_has_other_readers", what, remedy));
        }
        Ok(Group { before, behind })
    }

    fn real_operand(&self, n: usize, real: &[usize]) -> Judged {
        let (net, node) = (self.net(), self.net().node(n));
        let name = |i: usize| net.value_name(node.input(i).expect("it is given")).to_owned();
        let weighted = matches!(node.op, Op::Conv { .. } | Op::Gemm { .. });
        match real {
            [2] if weighted => {
                let was_sum =
                    self.net().origin[n].is_some_and(|o| matches!(self.file.node(o).op, Op::MatMul));
                let (rule, reason) = match was_sum {
                    true => (
                        "bias_in_gemm",
                        "ONNX Runtime makes one Gemm of MatMul and Add, whose bias is real and whose result is not quantized",
                    ),
                    false => ("bias_is_real", "its bias is real and its result is not quantized"),
                };
                Judged::float(
                    rule,
                    reason,
                    "give the bias as int32 with scale_x · scale_w, or quantize the result",
                )
            }
            [] => Judged::float("operands", "more of its operands are codes than its rule takes", ""),
            [i, ..] => Judged::float(
                "operand_is_real",
                format!("operand {i} (`{}`) is not dequantized from codes", name(*i)),
                format!("quantize `{}`", name(*i)),
            ),
        }
    }

    fn real_result(&self, n: usize) -> Judged {
        let net = self.net();
        let result = net.node(n).outputs[0];
        let readers = net.readers(result);
        let reason = match readers.first() {
            Some(&(reader, _)) => format!("its result goes to {} in float", net.node(reader).op.name()),
            None => "its result is an output of the model in float".to_owned(),
        };
        let remedy =
            format!("quantize `{}`: the rule needs a QuantizeLinear behind it", net.value_name(result));
        Judged::float("result_is_real", reason, remedy)
    }

    fn type_before(&self, group: &Group, i: usize) -> DType {
        self.net().codes_of(group.before[i])
    }

    /// All codes before and behind have one type of 8 bits.
    fn one_type(&self, group: &Group, operands: &[usize]) -> Result<DType, Judged> {
        let net = self.net();
        let mut all: Vec<usize> = operands.iter().map(|&i| group.before[i]).collect();
        all.extend(&group.behind);
        let types: Vec<DType> = all.iter().map(|&n| net.codes_of(n)).collect();
        let Some(&first) = types.first() else { return Ok(DType::U8) };
        if let Some(other) = types.iter().find(|&&t| t != first) {
            return Err(self.types_differ(&all, first, *other));
        }
        Err(match first {
            DType::U8 | DType::I8 => return Ok(first),
            DType::I16 | DType::U16 => Judged::float(
                "sixteen_bit",
                format!("its codes are {first}; ONNX Runtime fuses 8 bits only on a CPU"),
                "quantize to uint8",
            ),
            other => Judged::float("codes_type", format!("its codes are {other}"), "quantize to uint8"),
        })
    }

    fn types_differ(&self, all: &[usize], a: DType, b: DType) -> Judged {
        let net = self.net();
        let signed = all.iter().find(|&&n| net.codes_of(n) == DType::I8);
        // The codes that stay signed, with the readers that keep them so.
        let shared = signed.and_then(|&n| {
            let id = if net.is_quantizer(n) {
                net.node(n).outputs.first().copied()
            } else {
                net.node(n).input(0)
            }?;
            let readers = net.readers(id).len();
            (net.maker(id).is_some() && (readers > 1 || net.is_output(id))).then_some((id, readers))
        });
        match shared {
            Some((_, readers)) => Judged::float(
                "signed_shared",
                format!(
                    "on x86 ONNX Runtime turns int8 codes with one reader into uint8; codes beside it have {readers} \
                     readers and stay int8, so the types around it differ"
                ),
                "quantize activations to uint8",
            ),
            None => Judged::float(
                "types_differ",
                format!("its operands and its result have codes of {a} and {b}"),
                "use one type, uint8, for all activations, constants too",
            ),
        }
    }

    /// Operators whose operands and result have one type, with any parameters.
    fn same_types(&self, n: usize, becomes: &'static str, operands: Option<usize>) -> Result<Judged, Judged> {
        let group = self.group(n, operands, false)?;
        self.one_type(&group, &(0..group.before.len()).collect::<Vec<_>>())?;
        Ok(Judged::fuses(becomes))
    }

    fn signed_operands(&self, group: &Group) -> Result<(), Judged> {
        let (x, w) = (self.type_before(group, 0), self.type_before(group, 1));
        let bits16 = |t| matches!(t, DType::I16 | DType::U16);
        if bits16(x) || bits16(w) {
            let text = format!("its codes are {x} and {w}; ONNX Runtime fuses 8 bits only on a CPU");
            return Err(Judged::float("sixteen_bit", text, "quantize to uint8"));
        }
        if x != DType::I8 {
            return Ok(());
        }
        Err(match w == DType::I8 {
            true => match self.types_differ(&group.before[..1], x, w) {
                judged if judged.rule == "signed_shared" => judged,
                _ => Judged::float(
                    "signed_activations",
                    "its activations are int8, and x86 has no fast product of two signed bytes",
                    "quantize activations to uint8",
                ),
            },
            false => Judged::float(
                "types_differ",
                format!("activations are int8 and weights {w}"),
                "quantize activations to uint8",
            ),
        })
    }

    fn bias(&self, group: &Group) -> Result<(), Judged> {
        match group.before.get(2).map(|&dq| self.net().codes_of(dq)) {
            None | Some(DType::I32) => Ok(()),
            Some(other) => Err(Judged::float(
                "bias_type",
                format!("its bias is {other}, not int32"),
                "store the bias as int32 with scale_x · scale_w",
            )),
        }
    }

    /// Scales of weights along another axis than that of the output channels.
    fn axis(&self, n: usize, group: &Group, want: i64) -> Result<(), Judged> {
        let net = self.net();
        let Some(params) = net.params(group.before[1]).filter(|p| p.scale.len() > 1) else { return Ok(()) };
        let rank = net.constant(net.node(group.before[1]).input(0)).map(|t| t.shape().len() as i64);
        let axis = if params.axis < 0 { params.axis + rank.unwrap_or(0) } else { params.axis };
        match rank.is_none() || axis == want {
            true => Ok(()),
            false => Err(Judged::refused(
                "axis",
                format!(
                    "the scales of its weights run along axis {axis}; ONNX Runtime fuses it all the same and takes \
                     them for those of the output channels (axis {want}), so {} gives wrong results",
                    net.node(n).op.name()
                ),
                format!("quantize the weights along axis {want}"),
            )),
        }
    }

    fn conv(&self, n: usize) -> Result<Judged, Judged> {
        let group = self.group(n, None, false)?;
        self.signed_operands(&group)?;
        self.one_type(&group, &[0])?;
        self.bias(&group)?;
        self.axis(n, &group, 0)?;
        Ok(Judged::fuses("QLinearConv"))
    }

    fn gemm(&self, n: usize) -> Result<Judged, Judged> {
        if let Some(judged) = self.weights_only(n) {
            return Ok(judged);
        }
        let group = self.group(n, None, true)?;
        let (x, w) = (self.type_before(&group, 0), self.type_before(&group, 1));
        if x == DType::I8 && w != DType::I8 {
            return Err(self.types_differ(&group.before[..2], x, w));
        }
        self.one_type(&group, &[0])?;
        let Op::Gemm { alpha, beta, trans_a, trans_b } = self.net().node(n).op else {
            unreachable!("it is a Gemm")
        };
        if group.before.len() > 2 && beta != 1.0 {
            let text = format!("beta is {beta}; ONNX Runtime fuses 1 only");
            return Err(Judged::float("beta", text, "put beta into the bias"));
        }
        if alpha != 1.0 || trans_a {
            let text = format!("alpha is {alpha}, transA is {trans_a}; ONNX Runtime fuses 1 and false only");
            return Err(Judged::float("alpha", text, "put alpha into the weights"));
        }
        self.bias(&group)?;
        self.axis(n, &group, i64::from(!trans_b))?;
        Ok(Judged::fuses("QGemm"))
    }

    fn matmul(&self, n: usize) -> Result<Judged, Judged> {
        if let Some(judged) = self.weights_only(n) {
            return Ok(judged);
        }
        let group = self.group(n, Some(2), true)?;
        self.signed_operands(&group)?;
        let becomes = match group.behind.is_empty() {
            true => "MatMulIntegerToFloat",
            false => {
                self.one_type(&group, &[0])?;
                "QLinearMatMul"
            }
        };
        self.axis(n, &group, 1)?;
        Ok(Judged::fuses(becomes))
    }

    /// A product of reals with 8-bit weights.
    fn weights_only(&self, n: usize) -> Option<Judged> {
        let (net, node) = (self.net(), self.net().node(n));
        // It moves a Transpose into the codes.
        let turned = node.input(1).and_then(|id| net.maker(id)).filter(|&t| turns(&net.node(t).op));
        let dq = turned.map_or_else(|| net.dequantizer(n, 1), |t| net.dequantizer(t, 0))?;
        let plain = match node.op {
            Op::Gemm { alpha, beta, trans_a, trans_b } => {
                alpha == 1.0 && !trans_a && !trans_b && (node.input(2).is_none() || beta == 1.0)
            }
            _ => true,
        };
        let weights = net.constant(net.node(dq).input(0))?;
        let params = net.params(dq)?;
        let along = usize::from(turned.is_none());
        let columns = params.shape.is_empty()
            || params.axis == along as i64
                && weights.shape().get(along).is_some_and(|&d| params.shape == [d]);
        let all = [Some(dq), turned].into_iter().flatten().flat_map(|maker| &net.node(maker).outputs);
        let alone = all.chain(net.node(dq).inputs.iter().flatten()).all(|&id| net.only_reader(id).is_some());
        let quantized = node.outputs.iter().any(|&o| !net.quantizers(o).is_empty());
        let eight = matches!(params.dtype, DType::I8 | DType::U8);
        let fits = weights.shape().len() == 2 && eight && columns && alone;
        let real = net.dequantizer(n, 0).is_none() && self.clamp_behind(n).is_none() && !quantized;
        (plain && fits && real).then(|| Judged::fuses("MatMulNBits"))
    }

    fn max_pool(&self, n: usize) -> Result<Judged, Judged> {
        let opset = self.net().graph.opset;
        if opset < 12 && self.net().touches_codes(n) {
            let text = format!("the file speaks opset {opset}; MaxPool takes 8-bit codes from opset 12 on");
            return Err(Judged::float("opset", text, "write the file in opset 13"));
        }
        self.moves(n, "MaxPool", true)
    }

    /// Operators that give codes on as they are: Q and DQ go where both mean the same.
    fn moves(&self, n: usize, becomes: &'static str, only_eight: bool) -> Result<Judged, Judged> {
        let net = self.net();
        let group = self.group(n, Some(1), false)?;
        if self.clamp_behind(n).is_some() {
            return Err(Judged::float("clamp_stays", "a clamp follows it", ""));
        }
        let (dq, unknown) = (group.before[0], || {
            let text = "scale or zero point beside it are not constants, or not one for the whole tensor";
            Judged::float("parameters", text, "use constant scalars")
        });
        let scalar = |n: usize| net.params(n).filter(Params::is_scalar);
        let before = scalar(dq).ok_or_else(unknown)?;
        for &q in &group.behind {
            let behind = scalar(q).ok_or_else(unknown)?;
            if !before.has_zero || !behind.has_zero {
                let text = "a Q or DQ node beside it has no zero point";
                return Err(Judged::float(
                    "no_zero_point",
                    text,
                    "write zero points out, also where they are 0",
                ));
            }
            if before.dtype != behind.dtype {
                return Err(self.types_differ(&[dq, q], before.dtype, behind.dtype));
            }
            if only_eight && matches!(before.dtype, DType::I16 | DType::U16) {
                return Err(Judged::float(
                    "sixteen_bit",
                    "it has no kernel for 16-bit codes",
                    "quantize to uint8",
                ));
            }
            if !before.same_as(&behind) {
                return Err(Judged::float(
                    "unequal_parameters",
                    format!("codes have {} before it and {} behind it", before.text(), behind.text()),
                    "give its operand and its result the same scale and zero point",
                ));
            }
            if only_eight && becomes != "Resize" && before.scale[0] <= 0.0 {
                return Err(Judged::float("scale_not_positive", "the scale is not positive", ""));
            }
        }
        Ok(Judged::fuses(becomes))
    }

    fn arg_max(&self, n: usize) -> Result<Judged, Judged> {
        let net = self.net();
        match net.dequantizer(n, 0).and_then(|dq| net.params(dq)) {
            None => Err(Judged::float("not_quantized", "its operand is not dequantized from codes", "")),
            Some(p) if !p.is_scalar() || !p.has_zero => {
                Err(Judged::float("no_zero_point", "the DQ node before it has no zero point", "write it out"))
            }
            Some(_) => Ok(Judged::fuses("ArgMax")),
        }
    }
}

/// Whether an operator exchanges rows and columns.
fn turns(op: &Op) -> bool {
    matches!(op, Op::Transpose { perm } if perm.is_empty() || perm[..] == [1, 0])
}
