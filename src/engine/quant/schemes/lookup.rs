//! Tables of embeddings in codes: a row becomes reals after it was read, so no runtime has to write the table out.
//!
//! ```text
//! y = DequantizeLinear(Gather(codes, i), scales, zeros)     a scale for each column
//! y = Cast(Gather(codes, i)) · Gather(scales, i)            a scale for each row, scales [rows, 1]
//! ```
//!
//! Words differ more than the places of their vectors do, so a scale for each row mostly holds more of a table; whichever
//! does is taken, where the target computes the second form as well.

use crate::engine::graph::op::{Binary, Op};
use crate::engine::graph::{Node, ValueId};
use crate::engine::quant::constants;
use crate::engine::quant::rewrite::{Layer, LayerWeights, Table, Writer, spread};
use crate::engine::quant::{MaxCode, weights};
use crate::engine::tensor::{DType, Tensor};

impl Writer<'_> {
    /// Rows of a table in codes.
    pub(in crate::engine::quant) fn lookup(&mut self, node: &Node) {
        let operand = constants::table_of(self.source, node).expect("the plan checked the table");
        let table = self.source.constant(operand).expect("the plan checked the table").clone();
        let along = |axis| {
            weights::quantize(&table, axis, weights::scales(&table, axis, MaxCode::MOST), MaxCode::MOST)
        };
        let mut quantized = along(self.per_channel.then_some(1));
        let mut held = weights::sqnr_db(&table, &quantized);
        if self.per_channel && self.profile.tables_by_row {
            let by_row = along(Some(0));
            let holds = weights::sqnr_db(&table, &by_row);
            if holds.unwrap_or(f64::INFINITY) > held.unwrap_or(f64::INFINITY) {
                (quantized, held) = (by_row, holds);
            }
        }
        let scale = &quantized.params.scale;
        let by_row = quantized.params.axis == Some(0);
        let known = self.tables.get(&operand).copied();
        let Table { codes, scales, zeros } = known.unwrap_or_else(|| {
            let shape: &[usize] = match quantized.params.axis {
                Some(0) => &[scale.len(), 1],
                Some(_) => &[scale.len()],
                None => &[],
            };
            let codes = self.constant(operand, "q", quantized.codes.clone());
            let scales = self.constant(operand, "s", Tensor::from_slice(shape, scale));
            let zeros = (!by_row).then(|| self.constant(operand, "z", Tensor::zeros(DType::I8, shape)));
            Table { codes, scales, zeros }
        });
        self.tables.insert(operand, Table { codes, scales, zeros });
        let result = node.outputs[0];
        let rows = self.value_like(result, "r", DType::I8);
        let read = |from: ValueId, to: ValueId, name: String| {
            let inputs = vec![Some(from), node.input(1)];
            Node { name, inputs, outputs: vec![to], ..node.clone() }
        };
        self.out.nodes.push(read(codes, rows, node.name.clone()));
        let name = self.out.value(result).name.clone();
        match zeros {
            Some(zeros) => {
                // The columns are the last axis, whatever the shape of the indices.
                let op = Op::DequantizeLinear { axis: if quantized.params.axis.is_some() { -1 } else { 1 } };
                let inputs = vec![Some(rows), Some(scales), Some(zeros)];
                self.out.nodes.push(Node::new(format!("{name}_d"), op, inputs, vec![result]));
            }
            None => {
                let reals = self.value_like(result, "c", DType::F32);
                let steps = self.value_like(result, "s", DType::F32);
                // The scales of rows are a column: a vector of one.
                self.out.value_mut(steps).dims = None;
                let cast = Op::Cast { to: DType::F32 };
                self.out.nodes.push(Node::new(format!("{name}_c"), cast, vec![Some(rows)], vec![reals]));
                self.out.nodes.push(read(scales, steps, format!("{name}_s")));
                let (op, inputs) = (Op::Binary(Binary::Mul), vec![Some(reals), Some(steps)]);
                self.out.nodes.push(Node::new(format!("{name}_d"), op, inputs, vec![result]));
            }
        }
        let weights = LayerWeights {
            shape: table.shape().to_vec(),
            max_code: MaxCode::MOST,
            sqnr_db: held,
            raised_channels: 0,
            scale_spread: spread(scale),
        };
        let layer = Layer {
            node: node.name.clone(),
            op: node.op.name(),
            float_value: name.clone(),
            int8_value: name,
            weights: Some(weights),
            constants: None,
        };
        self.layers.push(layer);
        self.codes(result, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::graph::{Graph, Value};
    use crate::engine::quant::Target;
    use crate::engine::quant::rewrite::tests::{lines, rewritten_by};

    fn two_readers(table: &[f32]) -> Graph {
        let mut g = Graph::default();
        let [i, a, b] =
            ["i", "a", "b"].map(|n| g.add_value(Value { name: n.to_owned(), ..Value::default() }));
        let t = g.add_constant("t", Tensor::from_slice(&[table.len() / 4, 4], table));
        for (name, output) in [("g1", a), ("g2", b)] {
            let (op, inputs) = (Op::Gather { axis: 0 }, vec![Some(t), Some(i)]);
            g.nodes.push(Node::new(name.to_owned(), op, inputs, vec![output]));
        }
        (g.inputs, g.outputs) = (vec![i], vec![a, b]);
        g
    }

    #[test]
    fn columns_that_differ_have_a_scale_each() {
        let table: Vec<f32> = (0..4096).map(|x| ((x % 4) * (x / 4 + 1)) as f32).collect();
        // Rows differ as well, but this target has no use for that.
        for (target, table) in
            [(Target::Octet, &[0.0f32, 1.0, 20.0, 300.0].repeat(1024)), (Target::Onnxruntime, &table)]
        {
            let result = rewritten_by(&two_readers(table), target);
            let want = [
                "a_r = Gather(t_q, i)",
                "a = DequantizeLinear(a_r, t_s, t_z)",
                "b_r = Gather(t_q, i)",
                "b = DequantizeLinear(b_r, t_s, t_z)",
            ];
            assert_eq!(lines(&result.graph), want);
            assert!(matches!(result.graph.nodes[1].op, Op::DequantizeLinear { axis: -1 }));
        }
        // A column of zeros has a scale of its own, and its codes are zeros.
        let zeros = rewritten_by(&two_readers(&[0.0f32, 1.0, 20.0, 300.0].repeat(1024)), Target::Octet).graph;
        let codes = zeros.values.iter().find(|v| v.name == "t_q").unwrap().constant.clone().unwrap();
        assert_eq!(&codes.slice::<i8>()[..4], [0, 127, 127, 127]);
    }

    #[test]
    fn rows_that_differ_have_a_scale_each() {
        let table: Vec<f32> = (0..4096).map(|x| ((x % 4 + 1) * (x / 4)) as f32).collect();
        let result = rewritten_by(&two_readers(&table), Target::Octet);
        let one = |v: &str| {
            [
                format!("{v}_r = Gather(t_q, i)"),
                format!("{v}_c = Cast({v}_r)"),
                format!("{v}_s = Gather(t_s, i)"),
                format!("{v} = Mul({v}_c, {v}_s)"),
            ]
        };
        assert_eq!(lines(&result.graph), [one("a"), one("b")].concat());
        let scales = result.graph.values.iter().find(|v| v.name == "t_s").unwrap().constant.clone().unwrap();
        assert_eq!(scales.shape(), [1024, 1]);
        // The first row is zeros: its codes are too, whatever the scale.
        assert!(scales.slice::<f32>().iter().all(|s| *s > 0.0));
    }
}
