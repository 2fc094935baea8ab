//! `TensorProto` to [`Tensor`] and back, and the same for the attributes of a node.

use std::collections::HashSet;

use bytes::Bytes;
use half::{bf16, f16};
use prost::Message;

use crate::engine::graph::attributes::{Attribute, Attributes};
use crate::engine::graph::shapes::{RANK_MAX, bounded};
use crate::engine::onnx::{AttributeProto, NodeProto, TensorProto, attribute_type};
use crate::engine::tensor::{DType, Tensor};

/// `TensorProto.DataType` of texts.
const STRING: i32 = 8;

/// The type that an ONNX number stands for, or what is wrong with it.
pub fn dtype_from_onnx(number: i32) -> Result<DType, String> {
    DType::of_onnx(number.into()).ok_or_else(|| match number {
        0 => "the element type is missing".to_owned(),
        STRING => "string tensors are not supported".to_owned(),
        other => format!("element type {other} is not supported"),
    })
}

/// Name and data of a tensor in a file of its own, as the cases of ONNX's backend tests have them.
///
/// # Errors
/// As [`tensor_from_proto`], or that the bytes are no tensor.
pub fn tensor_from_bytes(bytes: &[u8]) -> Result<(String, Tensor), String> {
    let proto = TensorProto::decode(Bytes::copy_from_slice(bytes)).map_err(|e| format!("no tensor: {e}"))?;
    Ok((proto.name.clone(), tensor_from_proto(&proto)?))
}

/// The data of a tensor message.
///
/// # Errors
/// A sentence that says what does not fit; the caller adds the name.
pub fn tensor_from_proto(proto: &TensorProto) -> Result<Tensor, String> {
    let (dtype, shape, bytes_needed) = layout(proto)?;
    let bytes = match &proto.raw_data {
        Some(raw) if !raw.is_empty() || bytes_needed == 0 => raw.clone(),
        _ => typed_data(proto, dtype),
    };
    fills(dtype, &shape, bytes_needed, bytes.len() as u64)?;
    let tensor = Tensor::from_bytes(dtype, &shape, &bytes).expect("the length was just compared");
    checked(tensor)
}

/// As [`tensor_from_proto`] for a tensor of an outline, whose data `read` brings: from which byte of the file on, to
/// where.
///
/// # Errors
/// As [`tensor_from_proto`], and those of `read`.
pub(super) fn tensor_from_outline(
    proto: &TensorProto,
    read: impl FnOnce(u64, &mut [u8]) -> Result<(), String>,
) -> Result<Tensor, String> {
    let (Some(from), Some(bytes)) = (proto.data_from, proto.data_bytes) else {
        return tensor_from_proto(proto);
    };
    let (dtype, shape, bytes_needed) = layout(proto)?;
    fills(dtype, &shape, bytes_needed, bytes)?;
    let mut tensor = Tensor::zeros(dtype, &shape);
    read(from, tensor.view_mut().bytes)?;
    checked(tensor)
}

/// Type, shape and number of bytes.
fn layout(proto: &TensorProto) -> Result<(DType, Vec<usize>, usize), String> {
    if proto.data_location == Some(1) || !proto.external_data.is_empty() {
        let location = proto.external_data.iter().find(|entry| entry.key == "location");
        let file = location.map_or("", |entry| entry.value.as_str());
        return Err(format!("its data are in another file, `{file}`: pack both into one zip or tar file"));
    }
    let dtype = dtype_from_onnx(proto.data_type.unwrap_or(0))?;
    if proto.dims.len() > RANK_MAX {
        return Err(format!("{} dimensions, the limit is {RANK_MAX}", proto.dims.len()));
    }
    let dims: Option<Vec<usize>> = proto.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = dims.ok_or_else(|| format!("dimensions {:?} are negative", proto.dims))?;
    let bytes = bounded(dtype, &shape)?;
    Ok((dtype, shape, bytes))
}

fn fills(dtype: DType, shape: &[usize], needed: usize, given: u64) -> Result<(), String> {
    match needed as u64 == given {
        true => Ok(()),
        false => Err(format!("shape {shape:?} of {dtype} needs {needed} bytes, the file has {given}")),
    }
}

fn checked(tensor: Tensor) -> Result<Tensor, String> {
    match tensor.dtype() == DType::Bool && tensor.slice::<u8>().iter().any(|&b| b > 1) {
        true => Err("a bool is neither 0 nor 1".to_owned()),
        false => Ok(tensor),
    }
}

/// The bytes of the typed field that ONNX prescribes for each type.
fn typed_data(proto: &TensorProto, dtype: DType) -> Bytes {
    fn bytes<T: bytemuck::Pod>(values: impl Iterator<Item = T>) -> Bytes {
        Bytes::from(bytemuck::cast_slice(&values.collect::<Vec<T>>()).to_vec())
    }
    let ints = proto.int32_data.iter();
    match dtype {
        DType::F32 => bytes(proto.float_data.iter().copied()),
        DType::F64 => bytes(proto.double_data.iter().copied()),
        DType::I64 => bytes(proto.int64_data.iter().copied()),
        DType::U64 => bytes(proto.uint64_data.iter().copied()),
        DType::U32 => bytes(proto.uint64_data.iter().map(|&x| x as u32)),
        DType::I32 => bytes(ints.copied()),
        DType::I16 => bytes(ints.map(|&x| x as i16)),
        DType::U16 => bytes(ints.map(|&x| x as u16)),
        DType::I8 => bytes(ints.map(|&x| x as i8)),
        DType::U8 | DType::Bool => bytes(ints.map(|&x| x as u8)),
        DType::F16 => bytes(ints.map(|&x| f16::from_bits(x as u16))),
        DType::BF16 => bytes(ints.map(|&x| bf16::from_bits(x as u16))),
    }
}

/// The message of a tensor, with its data raw.
pub fn tensor_to_proto(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().onnx_number()),
        name: name.to_owned(),
        raw_data: Some(Bytes::copy_from_slice(tensor.view().bytes)),
        ..TensorProto::default()
    }
}

/// The attributes of a node, but those that are graphs.
///
/// # Errors
/// A sentence that names the attribute.
pub fn attributes_from_proto(node: &NodeProto) -> Result<Attributes, String> {
    let mut all = Vec::with_capacity(node.attribute.len());
    let mut names = HashSet::new();
    for proto in &node.attribute {
        if !names.insert(proto.name.as_str()) {
            return Err(format!("attribute `{}` stands there twice", proto.name));
        }
        if let Some(value) = attribute_from_proto(proto)? {
            all.push((proto.name.clone(), value));
        }
    }
    Ok(Attributes::new(all))
}

/// The value of an attribute; `None` where it is a graph.
fn attribute_from_proto(proto: &AttributeProto) -> Result<Option<Attribute>, String> {
    let wrong = |what: &str| format!("attribute `{}` {what}", proto.name);
    let text =
        |bytes: &Bytes| String::from_utf8(bytes.to_vec()).map_err(|_| wrong("is a string that is not UTF-8"));
    // Files before IR version 2 do not say the type: the field that is set tells.
    let guessed = match proto {
        AttributeProto { f: Some(_), .. } => attribute_type::FLOAT,
        AttributeProto { i: Some(_), .. } => attribute_type::INT,
        AttributeProto { s: Some(_), .. } => attribute_type::STRING,
        AttributeProto { t: Some(_), .. } => attribute_type::TENSOR,
        AttributeProto { g: Some(_), .. } => attribute_type::GRAPH,
        AttributeProto { floats, .. } if !floats.is_empty() => attribute_type::FLOATS,
        AttributeProto { strings, .. } if !strings.is_empty() => attribute_type::STRINGS,
        _ => attribute_type::INTS,
    };
    Ok(Some(match proto.r#type.filter(|t| *t != 0).unwrap_or(guessed) {
        attribute_type::FLOAT => Attribute::Float(proto.f.unwrap_or(0.0)),
        attribute_type::INT => Attribute::Int(proto.i.unwrap_or(0)),
        attribute_type::STRING => Attribute::Text(text(proto.s.as_ref().unwrap_or(&Bytes::new()))?),
        attribute_type::TENSOR => {
            let tensor = proto.t.as_ref().ok_or_else(|| wrong("holds no tensor"))?;
            Attribute::Tensor(tensor_from_proto(tensor).map_err(|e| wrong(&format!("is a tensor: {e}")))?)
        }
        attribute_type::GRAPH => return Ok(None),
        attribute_type::FLOATS => Attribute::Floats(proto.floats.clone()),
        attribute_type::INTS => Attribute::Ints(proto.ints.clone()),
        attribute_type::STRINGS => {
            Attribute::Texts(proto.strings.iter().map(text).collect::<Result<_, _>>()?)
        }
        other => {
            let named = attribute_type::REFUSED.iter().find(|(number, _)| *number == other);
            let named = named.map_or_else(|| format!("type {other}"), |(_, name)| format!("a {name}"));
            return Err(wrong(&format!("is {named}, which is not supported")));
        }
    }))
}

/// The message of an attribute.
pub fn attribute_to_proto(name: &str, value: &Attribute) -> AttributeProto {
    let empty = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
    match value {
        Attribute::Int(i) => AttributeProto { i: Some(*i), r#type: Some(attribute_type::INT), ..empty },
        Attribute::Float(f) => AttributeProto { f: Some(*f), r#type: Some(attribute_type::FLOAT), ..empty },
        Attribute::Text(s) => {
            AttributeProto { s: Some(bytes(s)), r#type: Some(attribute_type::STRING), ..empty }
        }
        Attribute::Tensor(t) => AttributeProto {
            t: Some(Box::new(tensor_to_proto("", t))),
            r#type: Some(attribute_type::TENSOR),
            ..empty
        },
        Attribute::Ints(ints) => {
            AttributeProto { ints: ints.clone(), r#type: Some(attribute_type::INTS), ..empty }
        }
        Attribute::Floats(floats) => {
            AttributeProto { floats: floats.clone(), r#type: Some(attribute_type::FLOATS), ..empty }
        }
        Attribute::Texts(texts) => AttributeProto {
            strings: texts.iter().map(bytes).collect(),
            r#type: Some(attribute_type::STRINGS),
            ..empty
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proto(dims: &[i64], data_type: i32, raw: &[u8]) -> TensorProto {
        TensorProto {
            dims: dims.to_vec(),
            data_type: Some(data_type),
            raw_data: Some(Bytes::copy_from_slice(raw)),
            ..TensorProto::default()
        }
    }

    #[test]
    fn a_tensor_survives_the_round_trip() {
        let tensor = Tensor::from_slice(&[2, 2], &[1.0f32, -2.0, 3.5, f32::MAX]);
        assert_eq!(tensor_from_proto(&tensor_to_proto("w", &tensor)).unwrap(), tensor);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let rows: &[(TensorProto, &str)] = &[
            (proto(&[2], DType::F32.onnx_number(), &[0; 7]), "needs 8 bytes, the file has 7"),
            (proto(&[-1], DType::F32.onnx_number(), &[]), "negative"),
            (proto(&[i64::MAX, i64::MAX], DType::F32.onnx_number(), &[]), "over the limit"),
            (proto(&[0, i64::MAX, i64::MAX], DType::F32.onnx_number(), &[]), "over the limit"),
            (proto(&[1; 33], DType::F32.onnx_number(), &[0; 4]), "33 dimensions"),
            (proto(&[1], STRING, &[]), "string"),
            (proto(&[1], 99, &[]), "element type 99"),
            (proto(&[1], DType::Bool.onnx_number(), &[7]), "neither 0 nor 1"),
        ];
        for (proto, want) in rows {
            let got = tensor_from_proto(proto).unwrap_err();
            assert!(got.contains(want), "{got}");
        }
    }
}
