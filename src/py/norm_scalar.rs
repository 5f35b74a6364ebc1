//! The NumPy scalar of a norm.

use super::objects::tuple;
use numpy::npyffi::{NpyTypes, PY_ARRAY_API, get_type_object};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// A scalar of NumPy's that takes its value later, when nothing may fail any more: the norm of a call that writes.
pub struct Scalar<'py> {
    /// Of float32, unless it is to be a float64 whatever the value.
    narrow: Option<Bound<'py, PyAny>>,
    wide: Bound<'py, PyAny>,
}

impl<'py> Scalar<'py> {
    /// A float64 if `wide`, else a float32, or a float64 if it turns out to be a finite value beyond float32.
    pub fn new(py: Python<'py>, wide: bool) -> PyResult<Self> {
        // NumPy's numbers of these types.
        const FLOAT: i32 = 11;
        const DOUBLE: i32 = 12;
        let make = |number: i32, expected: NpyTypes| {
            let mut zero = 0.0_f64;
            // SAFETY: the descriptor is a new reference that the scalar does not take over; the data is a zero of any
            // float type. The types are looked up in NumPy's table.
            unsafe {
                let descr = PY_ARRAY_API.PyArray_DescrFromType(py, number);
                let descr = Bound::from_owned_ptr_or_err(py, descr.cast())?;
                let data = (&raw mut zero).cast();
                let made = PY_ARRAY_API.PyArray_Scalar(py, data, descr.as_ptr().cast(), std::ptr::null_mut());
                let made = Bound::from_owned_ptr_or_err(py, made)?;
                assert!(ffi::Py_TYPE(made.as_ptr()) == get_type_object(py, expected));
                Ok::<_, PyErr>(made)
            }
        };
        let narrow = if wide { None } else { Some(make(FLOAT, NpyTypes::PyFloatArrType_Type)?) };
        Ok(Self { narrow, wide: make(DOUBLE, NpyTypes::PyDoubleArrType_Type)? })
    }

    /// The scalar of this value. Cannot fail.
    pub fn finish(self, value: f64) -> Bound<'py, PyAny> {
        let Self { narrow, wide } = self;
        Self::set(narrow, wide, value, |scalar| scalar)
    }

    /// The pair of `first` and a scalar that takes its value later.
    pub fn paired_with(self, first: &Bound<'py, PyAny>) -> PyResult<Pair<'py>> {
        let py = first.py();
        let pair =
            |scalar: Bound<'py, PyAny>| Ok::<_, PyErr>((tuple(py, [first.clone(), scalar.clone()])?, scalar));
        Ok(Pair { narrow: self.narrow.map(pair).transpose()?, wide: pair(self.wide)? })
    }

    /// Writes a value to the scalar, of `narrow` and `wide`, that holds it, and returns that one.
    fn set<T>(narrow: Option<T>, wide: T, value: f64, scalar: impl Fn(&T) -> &Bound<'py, PyAny>) -> T {
        let value = if value.is_nan() { f64::NAN } else { value };
        let fits = value.is_nan() || value.is_infinite() || value <= f64::from(f32::MAX);
        match narrow {
            Some(narrow) if fits => {
                // SAFETY: a scalar object of float32, checked when it was made: its value follows the head of all
                // objects. It was made for this call.
                unsafe { scalar(&narrow).as_ptr().add(1).cast::<f32>().write(value as f32) };
                narrow
            }
            _ => {
                // SAFETY: as above, of float64.
                unsafe { scalar(&wide).as_ptr().add(1).cast::<f64>().write(value) };
                wide
            }
        }
    }
}

/// What [`Scalar::paired_with`] makes: one pair for each type that the scalar may turn out to have.
pub struct Pair<'py> {
    narrow: Option<(Bound<'py, PyTuple>, Bound<'py, PyAny>)>,
    wide: (Bound<'py, PyTuple>, Bound<'py, PyAny>),
}

impl<'py> Pair<'py> {
    /// The pair with a scalar of this value. Cannot fail.
    pub fn finish(self, value: f64) -> Bound<'py, PyTuple> {
        Scalar::set(self.narrow, self.wide, value, |(_, scalar)| scalar).0
    }
}
