//! Functions of one code: whatever stands between codes and a Q node and computes with nothing else, element by element,
//! is a table of 256 codes. An activation costs a lookup, however its exporter spells it.

use crate::engine::graph::function::Function;
use crate::engine::graph::op::Op;
use crate::engine::graph::{Node, ValueId};
use crate::engine::tensor::qparams::QuantParams;

use super::lowering::{Codes, FULL, Lowering, Target};
use super::ops_math::element;

impl Lowering {
    /// A Q node behind a function of one code, as a table: exactly what DQ, the nodes between and Q give. Those are
    /// left to their other readers, if they have any.
    pub(super) fn table(&mut self, node: &Node) -> Option<Node> {
        let real = node.input(0)?;
        let codes = self.quantizer(self.current)?;
        let last = *self.producers.get(&real)?;
        let is_codes = |id: ValueId| self.activation(Some(id)).is_some();
        let function = Function::ending_at(&self.graph, &self.producers, last, is_codes)?;
        let sources: Option<Vec<Codes>> =
            function.sources.iter().map(|&s| self.activation(Some(s))).collect();
        let sources = sources?;
        // A constant of one element is a number, whether or not the file has it in codes.
        let numbers: Vec<Option<f32>> = sources.iter().map(|s| self.number(s)).collect();
        let first = numbers.iter().position(Option::is_none)?;
        let root = self.root_of(&sources[first]);
        let other = |(s, number): (&Codes, &Option<f32>)| number.is_none() && self.root_of(s) != root;
        if sources.iter().zip(&numbers).any(other) || self.graph.constant(root).is_some() {
            return None;
        }
        let mut table = Box::new([0; 256]);
        for (q, code) in (0..=255).zip(table.iter_mut()) {
            let source = |id: ValueId| {
                let i = function.sources.iter().position(|&s| s == id).expect("a source");
                let (codes, code) = (&sources[i], |t: &[u8; 256]| t[usize::from(q)]);
                let own = || real_of(&codes.params, self.tables.get(&codes.id).map_or(q, |(_, t)| code(t)));
                numbers[i].unwrap_or_else(own)
            };
            let y = function.at(&self.graph, source, |node, operands| element(&node.op, operands))?;
            *code = codes.params.quantize(y, 0) as u8;
        }
        let from = self.tables.get(&sources[first].id).map_or(&sources[first], |(root, _)| root).clone();
        let operand = self.operand(&from);
        let id = codes.id;
        let output = self.take(Target { codes, clamp: FULL, absorbs: Vec::new(), real });
        self.tables.insert(id, (from, table.clone()));
        Some(Node::new(node.name.clone(), Op::QTable { table }, vec![Some(operand)], vec![output]))
    }

    /// The real that constant codes of one element, in a list or by itself, stand for.
    pub(super) fn number(&self, codes: &Codes) -> Option<f32> {
        let tensor = self.graph.constant(codes.id).filter(|t| t.len() == 1 && t.shape().len() <= 1)?;
        // Parameters are those of `u8`, whatever the codes are stored as.
        let code = tensor.to_i64()[0] as i32 + if codes.signed { 128 } else { 0 };
        Some(codes.params.dequantize(code, 0))
    }

    /// The codes that others are a function of; they themselves if of none.
    pub(super) fn root_of(&self, codes: &Codes) -> ValueId {
        self.tables.get(&codes.id).map_or(codes.id, |(root, _)| root.id)
    }
}

fn real_of(params: &QuantParams, code: u8) -> f32 {
    params.dequantize(code.into(), 0)
}
