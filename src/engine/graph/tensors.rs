//! `TensorProto` to [`Tensor`] and back.

use bytes::Bytes;
use half::{bf16, f16};

use crate::engine::onnx::{TensorProto, data_type};
use crate::engine::tensor::{DType, Tensor, element_count};

/// Element types by ONNX number.
const TYPES: &[(i32, DType)] = &[
    (data_type::FLOAT, DType::F32),
    (data_type::DOUBLE, DType::F64),
    (data_type::FLOAT16, DType::F16),
    (data_type::BFLOAT16, DType::BF16),
    (data_type::INT64, DType::I64),
    (data_type::INT32, DType::I32),
    (data_type::INT16, DType::I16),
    (data_type::INT8, DType::I8),
    (data_type::UINT64, DType::U64),
    (data_type::UINT32, DType::U32),
    (data_type::UINT16, DType::U16),
    (data_type::UINT8, DType::U8),
    (data_type::BOOL, DType::Bool),
];

/// The type that an ONNX number stands for, or what is wrong with it.
pub fn dtype_from_onnx(number: i32) -> Result<DType, String> {
    let known = TYPES.iter().find(|(n, _)| *n == number).map(|(_, dtype)| *dtype);
    known.ok_or_else(|| match number {
        0 => "the element type is missing".to_owned(),
        data_type::STRING => "string tensors are not supported".to_owned(),
        other => format!("element type {other} is not supported"),
    })
}

/// The ONNX number of a type.
pub fn dtype_to_onnx(dtype: DType) -> i32 {
    TYPES.iter().find(|(_, d)| *d == dtype).map(|(n, _)| *n).expect("the table has every type")
}

/// The data of a tensor message.
///
/// # Errors
/// A sentence that says what does not fit; the caller adds the name.
pub fn tensor_from_proto(proto: &TensorProto) -> Result<Tensor, String> {
    if proto.data_location == Some(1) || !proto.external_data.is_empty() {
        return Err("external data is not supported: save the model as one file".to_owned());
    }
    let dtype = dtype_from_onnx(proto.data_type.unwrap_or(0))?;
    let dims: Option<Vec<usize>> = proto.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = dims.ok_or_else(|| format!("dimensions {:?} are negative", proto.dims))?;
    let count = element_count(&shape)
        .filter(|n| n.checked_mul(dtype.size()).is_some_and(|b| b <= isize::MAX as usize))
        .ok_or_else(|| format!("the product of the dimensions {shape:?} overflows"))?;
    let bytes = match &proto.raw_data {
        Some(raw) if !raw.is_empty() || count == 0 => raw.clone(),
        _ => typed_data(proto, dtype),
    };
    if bytes.len() != count * dtype.size() {
        return Err(format!(
            "shape {shape:?} of {dtype} needs {} bytes, the file has {}",
            count * dtype.size(),
            bytes.len()
        ));
    }
    let tensor = Tensor::from_bytes(dtype, &shape, &bytes).expect("the length was just compared");
    if dtype == DType::Bool && tensor.slice::<u8>().iter().any(|&b| b > 1) {
        return Err("a bool is neither 0 nor 1".to_owned());
    }
    Ok(tensor)
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
        data_type: Some(dtype_to_onnx(tensor.dtype())),
        name: name.to_owned(),
        raw_data: Some(Bytes::copy_from_slice(tensor.view().bytes)),
        ..TensorProto::default()
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
            (proto(&[2], data_type::FLOAT, &[0; 7]), "needs 8 bytes, the file has 7"),
            (proto(&[-1], data_type::FLOAT, &[]), "negative"),
            (proto(&[i64::MAX, i64::MAX], data_type::FLOAT, &[]), "overflows"),
            (proto(&[1], data_type::STRING, &[]), "string"),
            (proto(&[1], 99, &[]), "element type 99"),
            (proto(&[1], data_type::BOOL, &[7]), "neither 0 nor 1"),
        ];
        for (proto, want) in rows {
            let got = tensor_from_proto(proto).unwrap_err();
            assert!(got.contains(want), "{got}");
        }
    }
}
