//! If, Loop and Scan: the operator of a node with bodies, and whether those fit it.

use std::sync::Arc;

use crate::engine::graph::Graph;
use crate::engine::graph::attributes::Attributes;
use crate::engine::graph::op::{Op, Scan};

use super::NodeProto;

/// The operator of a node with bodies; `given` operands are listed in the file.
pub(super) fn control(
    proto: &NodeProto,
    a: &Attributes,
    given: usize,
    bodies: &[Arc<Graph>],
) -> Result<Op, String> {
    let results = proto.output.len();
    let takes = |body: &Graph, least: usize, gives: usize| match body.inputs.len() >= least
        && body.outputs.len() == gives
    {
        true => Ok(()),
        false => Err(format!(
            "its body takes {} values and gives {}; at least {least} and {gives} are needed",
            body.inputs.len(),
            body.outputs.len()
        )),
    };
    match proto.op_type.as_str() {
        "If" => {
            if given != 1 {
                return Err(format!("it has {given} inputs, 1 is needed"));
            }
            for body in bodies {
                takes(body, 0, results)?;
            }
            Ok(Op::If)
        }
        "Loop" => {
            let carried = given.checked_sub(2).ok_or("it has less than 2 inputs")?;
            takes(&bodies[0], given, results + 1)?;
            if results < carried {
                return Err(format!("it has {results} outputs for {carried} carried values"));
            }
            Ok(Op::Loop { carried })
        }
        _ => {
            let scanned = a.int("num_scan_inputs")?.ok_or("attribute `num_scan_inputs` is missing")?;
            let scanned = usize::try_from(scanned).ok().filter(|&n| n >= 1 && n <= given);
            let scanned = scanned.ok_or("attribute `num_scan_inputs` does not fit its inputs")?;
            let states = given - scanned;
            takes(&bodies[0], given, results)?;
            let stacked = results.checked_sub(states).ok_or("it has fewer outputs than states")?;
            let pairs = |kind: &str, count: usize| -> Result<Vec<(i64, bool)>, String> {
                let axes = a.ints(&format!("scan_{kind}_axes"))?.unwrap_or_else(|| vec![0; count]);
                let directions =
                    a.ints(&format!("scan_{kind}_directions"))?.unwrap_or_else(|| vec![0; count]);
                match axes.len() == count && directions.len() == count {
                    true => Ok(axes.into_iter().zip(directions.into_iter().map(|d| d != 0)).collect()),
                    false => Err(format!("its {kind} axes or directions are not {count}")),
                }
            };
            Ok(Op::Scan(Scan {
                states,
                inputs: pairs("input", scanned)?,
                outputs: pairs("output", stacked)?,
            }))
        }
    }
}
