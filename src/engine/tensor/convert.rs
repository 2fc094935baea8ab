//! Elements of one type as those of another, where every value is kept.

use super::{DType, Element, Tensor};

pub(super) fn is_integer(dtype: DType) -> bool {
    !matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::Bool)
}

/// Whether elements of one type may stand for another: floats widen, f64 rounds to f32, integers are checked one by
/// one. The error is what to do instead.
pub(super) fn convertible(from: DType, to: DType) -> Result<(), &'static str> {
    let widens = matches!((from, to), (DType::F16, DType::F32 | DType::F64) | (DType::F32, DType::F64));
    let rounds = matches!((from, to), (DType::F64, DType::F32));
    if from == to || widens || rounds || (is_integer(from) && is_integer(to)) {
        return Ok(());
    }
    if from == DType::U8 {
        return Err("; store byte images as NAME_u8 with NAME_mean and NAME_std");
    }
    Err("; convert it with numpy's astype")
}

/// The same values as another type, or the position of the first that does not fit and why.
pub(super) fn convert(tensor: Tensor, to: DType) -> Result<Tensor, (usize, String)> {
    let from = tensor.dtype();
    if from == to {
        return match to {
            DType::Bool => match tensor.slice::<u8>().iter().position(|&b| b > 1) {
                Some(at) => Err((at, "holds a truth value that is neither 0 nor 1".to_owned())),
                None => Ok(tensor),
            },
            _ => Ok(tensor),
        };
    }
    if to == DType::F32 || to == DType::F64 {
        let values = tensor.to_f64();
        let shape = tensor.shape();
        return Ok(match to {
            DType::F32 => Tensor::from_slice(shape, &values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
            _ => Tensor::from_slice(shape, &values),
        });
    }
    // i128 holds every integer type.
    let wide: Vec<i128> = match from {
        DType::I64 => tensor.slice::<i64>().iter().map(|&x| x.into()).collect(),
        DType::U64 => tensor.slice::<u64>().iter().map(|&x| x.into()).collect(),
        _ => tensor.to_f64().iter().map(|&x| x as i128).collect(),
    };
    match to {
        DType::I64 => narrow::<i64>(tensor.shape(), &wide),
        DType::I32 => narrow::<i32>(tensor.shape(), &wide),
        DType::I16 => narrow::<i16>(tensor.shape(), &wide),
        DType::I8 => narrow::<i8>(tensor.shape(), &wide),
        DType::U64 => narrow::<u64>(tensor.shape(), &wide),
        DType::U32 => narrow::<u32>(tensor.shape(), &wide),
        DType::U16 => narrow::<u16>(tensor.shape(), &wide),
        DType::U8 => narrow::<u8>(tensor.shape(), &wide),
        _ => unreachable!("`convertible` lets only integers become integers"),
    }
}

fn narrow<T: Element + TryFrom<i128>>(shape: &[usize], wide: &[i128]) -> Result<Tensor, (usize, String)> {
    let mut values = Vec::with_capacity(wide.len());
    for (at, &x) in wide.iter().enumerate() {
        match T::try_from(x) {
            Ok(y) => values.push(y),
            Err(_) => return Err((at, format!("holds {x}, which {} cannot", T::DTYPE))),
        }
    }
    Ok(Tensor::from_slice(shape, &values))
}

/// Position of the first NaN or infinity.
pub(super) fn first_not_finite(tensor: &Tensor) -> Option<usize> {
    match tensor.dtype() {
        DType::F32 => tensor.slice::<f32>().iter().position(|x| !x.is_finite()),
        DType::F64 => tensor.slice::<f64>().iter().position(|x| !x.is_finite()),
        DType::F16 => tensor.slice::<half::f16>().iter().position(|x| !x.is_finite()),
        DType::BF16 => tensor.slice::<half::bf16>().iter().position(|x| !x.is_finite()),
        _ => None,
    }
}
