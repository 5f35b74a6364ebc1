//! Norms as NumPy objects.
//!
//! The scalar of a norm is created before a call writes, and gets its value after that, when nothing may fail.

use super::objects::tuple;
use numpy::npyffi::{self, NpyTypes, PY_ARRAY_API, get_type_object};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// NumPy's type number of float32.
const FLOAT: i32 = 11;
/// NumPy's type number of float64.
const DOUBLE: i32 = 12;

/// A NumPy scalar whose value is set later. It is float32 or float64, depending on the value.
pub struct NormScalar<'py> {
    /// The scalar if it turns out to be float32; None if it is float64 for any value.
    float32: Option<Bound<'py, PyAny>>,
    /// The scalar if it turns out to be float64.
    float64: Bound<'py, PyAny>,
}

impl<'py> NormScalar<'py> {
    /// Creates the scalar. It is float64 with `is_float64`, or if the value is finite and out of range of float32; else
    /// float32.
    pub fn new(py: Python<'py>, is_float64: bool) -> PyResult<Self> {
        let zero = |type_number: i32, class: NpyTypes| {
            let mut zero = 0.0_f64;
            // SAFETY: the descriptor is a new reference, which the scalar does not steal. The bytes of `zero` are 0 in
            // every float dtype. The types are entries of NumPy's API table.
            unsafe {
                let descr = PY_ARRAY_API.PyArray_DescrFromType(py, type_number);
                let descr = Bound::from_owned_ptr_or_err(py, descr.cast())?;
                let data = (&raw mut zero).cast();
                let scalar =
                    PY_ARRAY_API.PyArray_Scalar(py, data, descr.as_ptr().cast(), std::ptr::null_mut());
                let scalar = Bound::from_owned_ptr_or_err(py, scalar)?;
                assert!(ffi::Py_TYPE(scalar.as_ptr()) == get_type_object(py, class));
                Ok::<_, PyErr>(scalar)
            }
        };
        let float32 = if is_float64 { None } else { Some(zero(FLOAT, NpyTypes::PyFloatArrType_Type)?) };
        Ok(Self { float32, float64: zero(DOUBLE, NpyTypes::PyDoubleArrType_Type)? })
    }

    /// Sets the value and returns the scalar. Cannot fail.
    pub fn finish(self, value: f64) -> Bound<'py, PyAny> {
        set_value(self.float32, self.float64, value, |scalar| scalar)
    }

    /// Creates the tuple of `first` and the scalar, whose value is set later.
    pub fn after(self, first: &Bound<'py, PyAny>) -> PyResult<TupleWithNorm<'py>> {
        let py = first.py();
        let pair =
            |scalar: Bound<'py, PyAny>| Ok::<_, PyErr>((tuple(py, [first.clone(), scalar.clone()])?, scalar));
        Ok(TupleWithNorm { float32: self.float32.map(pair).transpose()?, float64: pair(self.float64)? })
    }
}

/// A tuple of an object and a NumPy scalar whose value is set later, see [`NormScalar::after`].
pub struct TupleWithNorm<'py> {
    /// Tuple and scalar if the scalar turns out to be float32; None if it is float64 for any value.
    float32: Option<(Bound<'py, PyTuple>, Bound<'py, PyAny>)>,
    /// Tuple and scalar if the scalar turns out to be float64.
    float64: (Bound<'py, PyTuple>, Bound<'py, PyAny>),
}

impl<'py> TupleWithNorm<'py> {
    /// Sets the value of the scalar and returns the tuple. Cannot fail.
    pub fn finish(self, value: f64) -> Bound<'py, PyTuple> {
        set_value(self.float32, self.float64, value, |(_, scalar)| scalar).0
    }
}

/// Chooses the dtype for a value, writes the value to that scalar, and returns the object that has it. `scalar` returns
/// the scalar of an object.
fn set_value<'py, T>(
    float32: Option<T>,
    float64: T,
    value: f64,
    scalar: impl Fn(&T) -> &Bound<'py, PyAny>,
) -> T {
    let value = if value.is_nan() { f64::NAN } else { value };
    let fits = value.is_nan() || value.is_infinite() || value <= f64::from(f32::MAX);
    match float32 {
        Some(float32) if fits => {
            // SAFETY: the type of the scalar was checked when it was created. The value of a float32 scalar follows the
            // object header. The scalar was created for this call.
            unsafe { scalar(&float32).as_ptr().add(1).cast::<f32>().write(value as f32) };
            float32
        }
        _ => {
            // SAFETY: as above, for float64.
            unsafe { scalar(&float64).as_ptr().add(1).cast::<f64>().write(value) };
            float64
        }
    }
}

/// Creates a float64 array of norms.
pub fn norm_array<'py>(py: Python<'py>, norms: &[f64]) -> PyResult<Bound<'py, PyAny>> {
    let mut len = norms.len() as npyffi::npy_intp;
    // SAFETY: the descriptor is a new reference, which `PyArray_Empty` steals, also if it fails. The new array has one
    // axis with an element for each norm, and no other code has it yet.
    unsafe {
        let descr = PY_ARRAY_API.PyArray_DescrFromType(py, DOUBLE);
        if descr.is_null() {
            return Err(PyErr::fetch(py));
        }
        let array = PY_ARRAY_API.PyArray_Empty(py, 1, &raw mut len, descr, 0);
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        let data = (*array.as_ptr().cast::<npyffi::PyArrayObject>()).fields.data.cast::<f64>();
        std::ptr::copy_nonoverlapping(norms.as_ptr(), data, norms.len());
        Ok(array)
    }
}
