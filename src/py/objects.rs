//! Python objects made so that running out of memory is an error: `PyO3`'s own constructors panic.

use super::raise::check_memory;
use crate::allocation::{reserve, with_capacity};
use crate::error::Error;
use numpy::npyffi::{NpyTypes, PY_ARRAY_API, get_type_object};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// A float.
pub fn float(py: Python<'_>, value: f64) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyFloat_FromDouble(value)) }
}

/// A whole number.
pub fn integer(py: Python<'_>, value: i32) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyLong_FromLong(value.into())) }
}

/// A position in a list.
pub fn position(py: Python<'_>, value: usize) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyLong_FromSize_t(value)) }
}

/// A list of `count` items.
///
/// # Errors
///
/// Those of the items, and if there are fewer.
pub fn list<'py>(
    py: Python<'py>,
    count: usize,
    items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyList_New(count.cast_signed()))? };
    let mut filled = 0;
    for (at, item) in items.take(count).enumerate() {
        // SAFETY: a new list that nobody else has changed, of so many entries that are not set; the call takes over the
        // reference.
        if unsafe { ffi::PyList_SetItem(made.as_ptr(), at.cast_signed(), item?.into_ptr()) } < 0 {
            return Err(PyErr::fetch(py));
        }
        filled = at + 1;
    }
    if filled != count {
        return Err(Error::Value(format!("fastclip._core: {filled} items for a list of {count}")).into());
    }
    Ok(made.cast_into::<PyList>()?)
}

/// What a list or tuple holds, as a list of our own.
///
/// # Errors
///
/// If it is neither.
pub fn list_of<'py>(items: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: both calls give a new list, or null with an error set; the objects are what they take. A list's entries
    // are taken as they are stored, whatever a subclass makes of them.
    let list = unsafe {
        let list = if items.is_instance_of::<PyList>() {
            ffi::PyList_GetSlice(items.as_ptr(), 0, isize::MAX)
        } else if items.is_instance_of::<PyTuple>() {
            ffi::PySequence_List(items.as_ptr())
        } else {
            return Err(Error::Type("tensors must be a list or a tuple of arrays".into()).into());
        };
        Bound::from_owned_ptr_or_err(items.py(), list)?
    };
    Ok(list.cast_into::<PyList>()?)
}

/// A tuple of these items.
pub fn tuple<'py, const N: usize>(
    py: Python<'py>,
    items: [Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyTuple>> {
    // SAFETY: the call gives a new reference, or null with an error set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyTuple_New(N.cast_signed()))? };
    for (at, item) in items.into_iter().enumerate() {
        // SAFETY: a new tuple of so many entries that are not set; the call takes over the reference.
        if unsafe { ffi::PyTuple_SetItem(made.as_ptr(), at.cast_signed(), item.into_ptr()) } < 0 {
            return Err(PyErr::fetch(py));
        }
    }
    Ok(made.cast_into::<PyTuple>()?)
}

/// The items of a list or tuple as Rust values.
pub fn extract<'py, T>(
    items: &Bound<'py, PyAny>,
    one: impl Fn(&Bound<'py, PyAny>) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    let py = items.py();
    let mut found = with_capacity(items.len()?)?;
    let mut push = |item: Bound<'py, PyAny>| {
        reserve(&mut found, 1)?;
        found.push(one(&item)?);
        check_memory(py)
    };
    if let Ok(list) = items.cast::<PyList>() {
        list.iter().try_for_each(&mut push)?;
    } else if let Ok(tuple) = items.cast::<PyTuple>() {
        tuple.iter().try_for_each(&mut push)?;
    } else {
        return Err(Error::Type("fastclip._core takes lists and tuples".into()).into());
    }
    Ok(found)
}

/// A float64 of a list.
pub fn number(item: &Bound<'_, PyAny>) -> PyResult<f64> {
    item.extract()
}

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
