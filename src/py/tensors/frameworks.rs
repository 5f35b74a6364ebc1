//! The libraries whose tensors are treated in a way of their own: torch, JAX and TensorFlow. None of them is imported
//! here. A tensor of a library exists only if the caller has imported it.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyModule, PyType};

/// A library whose tensors give results of the same kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framework {
    Torch,
    Jax,
    TensorFlow,
}

impl Framework {
    /// Returns the library that defines a type or one of its bases.
    pub fn of(class: &Bound<'_, PyType>) -> Option<Self> {
        class.mro().iter().find_map(|base| {
            let module = base.getattr(intern!(class.py(), "__module__")).ok()?;
            let module = module.extract::<String>().ok()?;
            match module.split('.').next()? {
                "torch" => Some(Self::Torch),
                "jax" | "jaxlib" => Some(Self::Jax),
                "tensorflow" => Some(Self::TensorFlow),
                _ => None,
            }
        })
    }

    /// The library with autograd.
    pub const WITH_AUTOGRAD: Self = Self::Torch;

    /// Whether tensors of the library can be changed.
    pub fn is_mutable(self) -> bool {
        self == Self::Torch
    }

    /// Whether a tensor of the library may be asked for a capsule. TensorFlow ends the process where the elements are
    /// text, handles or variants.
    pub fn has_capsule(self, tensor: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = tensor.py();
        if self != Self::TensorFlow {
            return Ok(true);
        }
        let dtype = tensor.getattr(intern!(py, "dtype"))?;
        for kind in [
            intern!(py, "is_floating"),
            intern!(py, "is_integer"),
            intern!(py, "is_complex"),
            intern!(py, "is_bool"),
        ] {
            if dtype.getattr(kind)?.is_truthy()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The function in `fastclip._arguments.foreign` that imports a result into the library.
    pub fn importer(self) -> &'static str {
        match self {
            Self::Torch => "torch_tensor",
            Self::Jax => "jax_array",
            Self::TensorFlow => "tensorflow_tensor",
        }
    }
}

/// The parts that a call needs of torch: the library whose tensors have a version counter, and whose autograd records
/// what is done with them.
pub struct Autograd<'py> {
    module: Bound<'py, PyModule>,
    tensor: Bound<'py, PyType>,
}

impl<'py> Autograd<'py> {
    /// Returns torch if the caller has imported it.
    pub fn imported(py: Python<'py>) -> Option<Self> {
        let modules = py.import(intern!(py, "sys")).ok()?.getattr(intern!(py, "modules")).ok()?;
        let modules = modules.cast_into::<PyDict>().ok()?;
        let module = modules.get_item(intern!(py, "torch")).ok()??.cast_into::<PyModule>().ok()?;
        let tensor = module.getattr(intern!(py, "Tensor")).ok()?.cast_into::<PyType>().ok()?;
        Some(Self { module, tensor })
    }

    /// Whether a type is that of tensors, or a subclass.
    pub fn defines(&self, class: &Bound<'py, PyType>) -> bool {
        class.is_subclass(&self.tensor).unwrap_or(false)
    }

    /// Whether operations on tensors of a type, even those that describe it, are passed to Python code of the type.
    pub fn is_dispatched(&self, class: &Bound<'py, PyType>) -> bool {
        let dispatch = |class: &Bound<'py, PyType>| class.getattr(intern!(class.py(), "__torch_dispatch__"));
        match (dispatch(class), dispatch(&self.tensor)) {
            (Ok(own), Ok(default)) => !own.is(&default),
            _ => false,
        }
    }

    /// Whether a method of tensors, called on each tensor of a list, returns true for one of them. The loop runs in C.
    fn any(method: &Bound<'py, PyAny>, tensors: &Bound<'py, PyList>) -> PyResult<bool> {
        let py = tensors.py();
        let builtins = py.import(intern!(py, "builtins"))?;
        let answers = builtins.getattr(intern!(py, "map"))?.call1((method, tensors))?;
        builtins.getattr(intern!(py, "any"))?.call1((answers,))?.is_truthy()
    }

    /// Whether a tensor of a list has its negative or conjugate bit set: then its memory has other values than the
    /// tensor, and torch negates or conjugates them when they are read.
    pub fn any_is_lazy(&self, tensors: &Bound<'py, PyList>) -> PyResult<bool> {
        let py = tensors.py();
        let [negative, conjugate] =
            [intern!(py, "is_neg"), intern!(py, "is_conj")].map(|method| self.tensor.getattr(method));
        Ok(Self::any(&negative?, tensors)? || Self::any(&conjugate?, tensors)?)
    }

    /// Whether operations on a tensor of a list are recorded, to be differentiated: one of them requires a gradient, and
    /// the mode of gradients is on.
    pub fn any_is_recorded(&self, tensors: &Bound<'py, PyList>) -> PyResult<bool> {
        let py = tensors.py();
        if !self.module.getattr(intern!(py, "is_grad_enabled"))?.call0()?.is_truthy()? {
            return Ok(false);
        }
        let getter = py.import(intern!(py, "operator"))?.getattr(intern!(py, "attrgetter"))?;
        Self::any(&getter.call1((intern!(py, "requires_grad"),))?, tensors)
    }

    /// Counts a change of every tensor in a list, so that torch's autograd refuses values that were saved before.
    pub fn count_change(&self, tensors: &Bound<'py, PyList>) -> PyResult<()> {
        let py = tensors.py();
        let increment = self.module.getattr(intern!(py, "_C"))?.getattr(intern!(py, "_increment_version"))?;
        if increment.call1((tensors,)).is_ok() {
            return Ok(());
        }
        // Older versions take one tensor.
        tensors.iter().try_for_each(|tensor| increment.call1((tensor,)).map(drop))
    }
}
