//! Tensors: a data type, a shape and 64-byte aligned bytes. Knows nothing of models.

mod byte_images;
mod convert;
pub mod dataset;
pub mod digest;
pub mod linear;
pub mod npy;
pub mod qparams;

use std::fmt;

use ndarray::{ArrayViewD, IxDyn};

use crate::engine::buffer::{Buffer, room};

/// What one element is. Names follow ONNX `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the variants are the ONNX names")]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// The name in lower case, as numpy spells it.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F64 => "float64",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            DType::I64 => "int64",
            DType::I32 => "int32",
            DType::I16 => "int16",
            DType::I8 => "int8",
            DType::U64 => "uint64",
            DType::U32 => "uint32",
            DType::U16 => "uint16",
            DType::U8 => "uint8",
            DType::Bool => "bool",
        }
    }

    /// The number in `TensorProto.DataType`.
    pub fn onnx_number(self) -> i32 {
        let entry = ONNX_NUMBERS.iter().find(|(_, dtype)| *dtype == self);
        entry.expect("the table has every type").0
    }

    /// The type that a number in `TensorProto.DataType` stands for, where it is one of these.
    pub fn of_onnx(number: i64) -> Option<DType> {
        ONNX_NUMBERS.iter().find(|(n, _)| i64::from(*n) == number).map(|(_, dtype)| *dtype)
    }
}

/// Element types by their numbers in `TensorProto.DataType`.
const ONNX_NUMBERS: [(i32, DType); 13] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (7, DType::I64),
    (9, DType::Bool),
    (10, DType::F16),
    (11, DType::F64),
    (12, DType::U32),
    (13, DType::U64),
    (16, DType::BF16),
];

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that can be an element. `bool` tensors are bytes 0 and 1 and are read as `u8`.
pub trait Element: bytemuck::Pod + Send + Sync + fmt::Debug + PartialEq {
    /// The data type that this type stores.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })* };
}
elements!(f32 => F32, f64 => F64, half::f16 => F16, half::bf16 => BF16, i64 => I64, i32 => I32, i16 => I16,
          i8 => I8, u64 => U64, u32 => U32, u16 => U16, u8 => U8);

/// Whether bytes of `dtype` may be read as `T`.
fn readable_as<T: Element>(dtype: DType) -> bool {
    dtype == T::DTYPE || (dtype == DType::Bool && T::DTYPE == DType::U8)
}

/// Bytes that come in parts and end with those of a tensor: they are written where the tensor needs them, and become it
/// without a copy.
pub struct Incoming {
    bytes: Vec<u8>,
    start: usize,
}

impl Incoming {
    /// Room for `len` bytes, of which those from `head` on are the tensor's. More may come: then they are moved.
    pub fn with_room(len: usize, head: usize) -> Incoming {
        let (bytes, start) = room(len, head);
        Incoming { bytes, start }
    }

    /// Takes the next part.
    pub fn extend(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
    }

    /// Takes the next part from `fill`, which appends it and touches nothing else.
    ///
    /// # Errors
    /// That of `fill`.
    pub fn extend_by<E>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        fill(&mut self.bytes)
    }

    /// All that has come.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The bytes, and where in them the first is that has come.
    pub fn into_parts(self) -> (Vec<u8>, usize) {
        (self.bytes, self.start)
    }

    /// The bytes from `head` on as a tensor, or `None` where their number does not fit.
    pub fn into_tensor(self, dtype: DType, shape: &[usize], head: usize) -> Option<Tensor> {
        let tail = self.bytes().get(head..)?;
        if element_count(shape)?.checked_mul(dtype.size())? != tail.len() {
            return None;
        }
        let start = self.start + head;
        match Buffer::of(self.bytes, start) {
            Ok(buffer) => Some(Tensor { dtype, shape: shape.to_vec(), buffer }),
            Err(bytes) => Tensor::from_bytes(dtype, shape, &bytes[start..]),
        }
    }
}

/// An owned tensor, row-major.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    buffer: Buffer,
}

/// A borrowed tensor, row-major; its bytes are aligned for its data type.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    /// What one element is.
    pub dtype: DType,
    /// Length of each dimension.
    pub shape: &'a [usize],
    /// `elements × dtype.size()` bytes, row-major, native (little) endian.
    pub bytes: &'a [u8],
}

/// A borrowed tensor that is being written.
pub struct TensorViewMut<'a> {
    /// What one element is.
    pub dtype: DType,
    /// Length of each dimension.
    pub shape: &'a [usize],
    /// `elements × dtype.size()` bytes, row-major, native (little) endian.
    pub bytes: &'a mut [u8],
}

/// Number of elements of a shape, or `None` where the product overflows, zeros aside: strides are products of some of
/// the dimensions, and must not overflow because another one is zero.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    (product <= isize::MAX as usize).then(|| if shape.contains(&0) { 0 } else { product })
}

impl Tensor {
    /// Zeros of a shape.
    ///
    /// # Panics
    /// If the number of bytes overflows `usize`: callers check shapes that strangers chose.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        let count = element_count(shape).expect("callers bound the shape");
        let bytes = count.checked_mul(dtype.size()).expect("callers bound the shape");
        Tensor { dtype, shape: shape.to_vec(), buffer: Buffer::zeroed(bytes) }
    }

    /// A tensor that holds a copy of `values`, `[shape]` row-major.
    ///
    /// # Panics
    /// If the number of values is not the product of the shape.
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Tensor {
        assert_eq!(element_count(shape), Some(values.len()), "values do not fill {shape:?}");
        let buffer = Buffer::copied(&[bytemuck::cast_slice(values)]);
        Tensor { dtype: T::DTYPE, shape: shape.to_vec(), buffer }
    }

    /// A tensor of `dtype` that holds a copy of `bytes`, or `None` where their number does not fit.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
        let count = element_count(shape)?;
        if count.checked_mul(dtype.size())? != bytes.len() {
            return None;
        }
        Some(Tensor { dtype, shape: shape.to_vec(), buffer: Buffer::copied(&[bytes]) })
    }

    /// A tensor of `dtype` that holds copies of `parts`, one behind the other, or `None` where their number of bytes does
    /// not fit.
    pub fn from_parts(dtype: DType, shape: &[usize], parts: &[&[u8]]) -> Option<Tensor> {
        let count = element_count(shape)?;
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if count.checked_mul(dtype.size())? != bytes {
            return None;
        }
        Some(Tensor { dtype, shape: shape.to_vec(), buffer: Buffer::copied(parts) })
    }

    /// A tensor without dimensions that holds one value.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::from_slice(&[], &[value])
    }

    /// What one element is.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Length of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same elements under another shape, or `None` where the counts differ.
    pub fn reshaped(mut self, shape: &[usize]) -> Option<Tensor> {
        (element_count(shape)? == self.len()).then(|| {
            self.shape = shape.to_vec();
            self
        })
    }

    /// The same bytes as another data type of the same size (`bool` from `u8`).
    pub fn retyped(mut self, dtype: DType) -> Tensor {
        assert_eq!(self.dtype.size(), dtype.size());
        self.dtype = dtype;
        self
    }

    /// A view of the whole tensor.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: &self.shape, bytes: self.buffer.bytes() }
    }

    /// A view of the whole tensor, to be written.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        TensorViewMut { dtype: self.dtype, shape: &self.shape, bytes: self.buffer.bytes_mut() }
    }

    /// The elements. Panics where `T` is not the data type.
    pub fn slice<T: Element>(&self) -> &[T] {
        self.view().slice()
    }

    /// The elements, to be written. Panics where `T` is not the data type.
    pub fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert!(readable_as::<T>(self.dtype), "a {} tensor is not {}", self.dtype, T::DTYPE);
        bytemuck::cast_slice_mut(self.buffer.bytes_mut())
    }

    /// The elements as numbers, whatever the data type.
    pub fn to_f64(&self) -> Vec<f64> {
        self.view().to_f64()
    }

    /// The elements as integers; fractions are cut.
    pub fn to_i64(&self) -> Vec<i64> {
        match self.dtype {
            DType::I64 => self.slice::<i64>().to_vec(),
            _ => self.to_f64().into_iter().map(|x| x as i64).collect(),
        }
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.buffer.bytes() == other.buffer.bytes()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if self.len() <= 16 {
            write!(f, " {:?}", self.to_f64())?;
        }
        Ok(())
    }
}

impl<'a> TensorView<'a> {
    /// The elements. Panics where `T` is not the data type.
    pub fn slice<T: Element>(&self) -> &'a [T] {
        assert!(readable_as::<T>(self.dtype), "a {} tensor is not {}", self.dtype, T::DTYPE);
        bytemuck::cast_slice(self.bytes)
    }

    /// The elements as an n-dimensional array. Panics where `T` is not the data type.
    pub fn array<T: Element>(&self) -> ArrayViewD<'a, T> {
        ArrayViewD::from_shape(IxDyn(self.shape), self.slice()).expect("a view is as long as its shape says")
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An owned copy.
    pub fn to_tensor(&self) -> Tensor {
        Tensor::from_bytes(self.dtype, self.shape, self.bytes).expect("a view is as long as its shape says")
    }

    /// The elements as numbers, whatever the data type.
    pub fn to_f64(&self) -> Vec<f64> {
        fn all<T: Element>(view: &TensorView<'_>, f: impl Fn(T) -> f64) -> Vec<f64> {
            view.slice::<T>().iter().map(|&x| f(x)).collect()
        }
        match self.dtype {
            DType::F32 => all(self, |x: f32| x.into()),
            DType::F64 => all(self, |x: f64| x),
            DType::F16 => all(self, |x: half::f16| x.to_f64()),
            DType::BF16 => all(self, |x: half::bf16| x.to_f64()),
            DType::I64 => all(self, |x: i64| x as f64),
            DType::I32 => all(self, |x: i32| x.into()),
            DType::I16 => all(self, |x: i16| x.into()),
            DType::I8 => all(self, |x: i8| x.into()),
            DType::U64 => all(self, |x: u64| x as f64),
            DType::U32 => all(self, |x: u32| x.into()),
            DType::U16 => all(self, |x: u16| x.into()),
            DType::U8 | DType::Bool => all(self, |x: u8| x.into()),
        }
    }
}

impl TensorViewMut<'_> {
    /// The elements, to be written. Panics where `T` is not the data type.
    pub fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert!(readable_as::<T>(self.dtype), "a {} tensor is not {}", self.dtype, T::DTYPE);
        bytemuck::cast_slice_mut(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_an_onnx_number_of_its_own() {
        let numbers: Vec<i64> = (-1..=40).filter(|&number| DType::of_onnx(number).is_some()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16]);
        for number in numbers {
            assert_eq!(i64::from(DType::of_onnx(number).unwrap().onnx_number()), number);
        }
        assert_eq!(DType::of_onnx((1 << 32) + 1), None, "not cut to 32 bits");
    }

    #[test]
    fn a_product_that_overflows_is_none() {
        assert_eq!(element_count(&[1 << 32, 1 << 32]), None);
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[3, 0, 5]), Some(0));
    }

    #[test]
    fn bytes_that_do_not_fill_the_shape_are_refused() {
        assert!(Tensor::from_bytes(DType::F32, &[2], &[0; 8]).is_some());
        assert!(Tensor::from_bytes(DType::F32, &[2], &[0; 7]).is_none());
        assert!(Tensor::from_bytes(DType::F32, &[usize::MAX, 2], &[0; 8]).is_none());
    }
}
