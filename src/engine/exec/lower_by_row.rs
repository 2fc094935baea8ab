//! Products whose activations become codes at run time, each row with a range of its own, in the operators of ONNX (the
//! form that `quant::schemes::dynamic` writes) to two steps: codes by row, and the product with what follows it.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed};
use crate::engine::graph::op::{Binary, Op, Reduce, Unary};
use crate::engine::graph::operator::{Operator, Other};
use crate::engine::graph::{Node, ValueId};
use crate::engine::kernels::by_row;
use crate::engine::kernels::isa::Isa;
use crate::engine::tensor::{DType, Tensor, TensorView, TensorViewMut};

use super::lowering::Lowering;
use super::others;
use super::step::{Context, Kernel};

const CODES: &str = "RowCodes";
/// No domain of ONNX: the executor alone makes such nodes.
const DOMAIN: &str = "octet";

/// `x [.., K]`: its codes, and `low` and `step` of each row, `[.., 1]`.
#[derive(Debug)]
struct RowCodes;

impl Operator for RowCodes {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let mut rows = x.shape.clone();
        match rows.last_mut() {
            Some(last) if x.dtype == DType::F32 && *last > 0 => *last = 1,
            _ => return Err(format!("rows of {} {:?} have no range", x.dtype, x.shape).into()),
        }
        Ok(vec![(DType::U8, x.shape.clone()), (DType::F32, rows.clone()), (DType::F32, rows)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = inputs.first().copied().flatten().ok_or("input 0 is missing")?;
        let mut rows = x.shape.to_vec();
        let k = rows.last_mut().map_or(0, |last| std::mem::replace(last, 1));
        let mut codes = Tensor::zeros(DType::U8, x.shape);
        let (mut low, mut step) = (Tensor::zeros(DType::F32, &rows), Tensor::zeros(DType::F32, &rows));
        by_row::codes(
            Isa::best(),
            x.slice(),
            k,
            codes.slice_mut::<u8>(),
            low.slice_mut::<f32>(),
            step.slice_mut::<f32>(),
            1,
        );
        Ok(vec![codes, low, step])
    }
}

/// The kernel of such codes, written where the plan wants them; `None` for every other operator.
pub(super) fn kernel(context: Context, other: &Other, results: &Results) -> Option<Kernel> {
    if (other.name, other.domain) != (CODES, DOMAIN) {
        return None;
    }
    let (ranges, _) = others::ranges(results);
    let (k, rows) = (*results[0].1.last()?, results[1].1.clone());
    Some(Box::new(move |operands, out, _| {
        let x = operands.need(0);
        let (codes, rest) = out.bytes.split_at_mut(ranges[1].start);
        let (low, step) = rest.split_at_mut(ranges[2].start - ranges[1].start);
        let reals = |bytes| TensorViewMut { dtype: DType::F32, shape: &rows, bytes };
        let mut low = reals(&mut low[..ranges[1].len()]);
        let mut step = reals(&mut step[..ranges[2].len()]);
        let codes = &mut codes[ranges[0].clone()];
        let (low, step) = (low.slice_mut::<f32>(), step.slice_mut::<f32>());
        by_row::codes(context.isa, x.slice(), k, codes, low, step, context.threads);
        Ok(())
    }))
}

impl Lowering {
    /// A QuantizeLinear of rows that were brought to the range of codes, each by its own least and largest value.
    pub(super) fn row_codes(&mut self, node: &Node) -> Option<Node> {
        let zero = self.graph.constant(node.input(2)?)?;
        let whole = zero.dtype() == DType::U8 && zero.len() == 1 && zero.slice::<u8>()[0] == 0;
        if !whole || self.one(node.input(1)?)? != 1.0 || self.graph.outputs.contains(&node.input(0)?) {
            return None;
        }
        let [shifted, low] = self.binary_made(node.input(0)?, Binary::Sub)?;
        let [x, inverse] = self.binary_made(shifted, Binary::Mul)?;
        let round = self.unary_made(low, Unary::Round)?;
        let [least, same] = self.binary_made(round, Binary::Mul)?;
        let [steps, range] = self.binary_made(inverse, Binary::Div)?;
        let [width, range_min] = self.binary_made(range, Binary::Max)?;
        let [largest, also_least] = self.binary_made(width, Binary::Sub)?;
        let [lowest, zero] = self.binary_made(least, Binary::Min)?;
        let highest = self.unary_made(largest, Unary::Relu)?;
        let fits = same == inverse
            && also_least == least
            && self.one(steps)? == by_row::STEPS
            && self.one(range_min)? == by_row::RANGE_MIN
            && self.one(zero)? == 0.0
            && self.reduced(lowest, Reduce::Min)? == x
            && self.reduced(highest, Reduce::Max)? == x;
        let is_step = |&&n: &&usize| {
            let node = &self.graph.nodes[n];
            let factor = node.input(1).and_then(|id| self.one(id));
            matches!(node.op, Op::Binary(Binary::Mul))
                && node.input(0) == Some(range)
                && factor == Some(1.0 / by_row::STEPS)
        };
        let multiplied = *self.consumers.get(range.0 as usize)?.iter().find(is_step)?;
        let step = self.graph.nodes[multiplied].outputs[0];
        let (between, rounded) = (*self.producers.get(&node.input(0)?)?, *self.producers.get(&low)?);
        // What the new node makes is there when it is read.
        let later =
            |id: ValueId| self.consumers[id.0 as usize].iter().all(|&n| n > self.current || n == between);
        if !fits || !later(low) || !later(step) || self.only_reader(node.input(0)?) != Some(self.current) {
            return None;
        }
        self.absorbed.extend([between, rounded, multiplied]);
        for (id, dtype) in [(node.outputs[0], DType::U8), (low, DType::F32), (step, DType::F32)] {
            self.graph.value_mut(id).dtype = Some(dtype);
            self.producers.insert(id, self.current);
        }
        let operator = std::sync::Arc::new(RowCodes);
        let op = Op::Other(Other { name: CODES, domain: DOMAIN, operator, attributes: Default::default() });
        Some(Node::new(node.name.clone(), op, vec![Some(x)], vec![node.outputs[0], low, step]))
    }

    /// The last factor of a product of such rows: `(Cast(sums) + low · column sums) · scale · step`.
    pub(super) fn row_product(&mut self, node: &Node) -> Option<Node> {
        let (a, step) = (node.input(0)?, node.input(1)?);
        let codes = &self.graph.nodes[*self.producers.get(&step)?];
        if !matches!(&codes.op, Op::Other(other) if other.name == CODES) || codes.outputs[2] != step {
            return None;
        }
        let (q, low) = (codes.outputs[0], codes.outputs[1]);
        let [sum, scale] = self.binary_made(a, Binary::Mul)?;
        let [cast, correction] = self.binary_made(sum, Binary::Add)?;
        let [same, sums] = self.binary_made(correction, Binary::Mul)?;
        let (cast_at, product) =
            (*self.producers.get(&cast)?, self.graph.nodes[*self.producers.get(&cast)?].input(0)?);
        let product_at = *self.producers.get(&product)?;
        let multiplied = &self.graph.nodes[product_at];
        let fits = same == low
            && matches!(self.graph.nodes[cast_at].op, Op::Cast { to: DType::F32 })
            && matches!(multiplied.op, Op::MatMulInteger)
            && multiplied.input(0) == Some(q)
            && multiplied.inputs.get(2).copied().flatten().is_none();
        let (weight, channels) =
            (multiplied.input(1)?, *self.graph.constant(multiplied.input(1)?)?.shape().get(1)?);
        let list = |id: ValueId| {
            let tensor = self.graph.constant(id)?;
            (tensor.dtype() == DType::F32 && tensor.shape() == [channels]).then_some(())
        };
        let zeros = self.graph.value(weight).qparams.as_ref()?.zero_point.iter().all(|&z| z == 0);
        let chain = [product, cast, sum, a, correction];
        let alone = chain.iter().all(|&id| self.only_reader(id).is_some());
        if !fits || !zeros || !alone || list(scale).is_none() || list(sums).is_none() {
            return None;
        }
        let made: Option<Vec<usize>> = chain.iter().map(|id| self.producers.get(id).copied()).collect();
        // The product has the name that the model gives it, not that of the last factor.
        let name = multiplied.name.clone();
        self.absorbed.extend(made?);
        let inputs = [q, weight, low, step, sums, scale].map(Some).to_vec();
        Some(Node::new(name, Op::RowProduct, inputs, node.outputs.clone()))
    }

    /// The operands of the node that makes a value, where it is one of this kind.
    fn binary_made(&self, id: ValueId, op: Binary) -> Option<[ValueId; 2]> {
        let node = &self.graph.nodes[*self.producers.get(&id)?];
        let same = matches!(node.op, Op::Binary(own) if own == op);
        same.then_some([node.input(0)?, node.input(1)?])
    }

    fn unary_made(&self, id: ValueId, op: Unary) -> Option<ValueId> {
        let node = &self.graph.nodes[*self.producers.get(&id)?];
        matches!(node.op, Op::Unary(own) if own == op).then(|| node.input(0))?
    }

    /// What a value is the least or largest of, along the last axis.
    fn reduced(&self, id: ValueId, reduce: Reduce) -> Option<ValueId> {
        let node = &self.graph.nodes[*self.producers.get(&id)?];
        let Op::Reduce { kind, keep_dims: true, .. } = node.op else { return None };
        let axes = self.graph.constant(node.input(1)?)?;
        (kind == reduce && axes.to_i64() == [-1]).then(|| node.input(0))?
    }

    /// The one real that a constant holds.
    fn one(&self, id: ValueId) -> Option<f32> {
        let tensor = self.graph.constant(id)?;
        (tensor.dtype() == DType::F32 && tensor.len() == 1).then(|| tensor.slice::<f32>()[0])
    }
}
