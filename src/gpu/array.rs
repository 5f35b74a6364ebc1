//! Arrays on a device.

use super::arena::Range;
use super::device::Device;
use super::error::GpuError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The type of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit floats with the exponents of float32.
    BF16,
    /// 32-bit integers.
    I32,
}

impl Element {
    /// Size of an element in bytes.
    #[must_use]
    pub fn size(self) -> u64 {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name of the type, which is that of NumPy's dtype.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::I32 => "int32",
        }
    }
}

/// An array on a device: elements in C order.
pub struct Array {
    /// The device.
    pub device: Arc<Device>,
    /// Number of the array, unique in the process.
    pub id: u64,
    /// The type of the elements.
    pub element: Element,
    /// Number of elements.
    pub len: u64,
    /// The memory. Every range but the last is full.
    pub ranges: Vec<Range>,
}

impl Array {
    /// Creates an array whose elements are not set.
    ///
    /// # Errors
    ///
    /// If the device has too little memory.
    pub fn new(device: &Arc<Device>, element: Element, len: u64) -> Result<Arc<Self>, GpuError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let bytes = len
            .checked_mul(element.size())
            .ok_or_else(|| GpuError::OutOfMemory(format!("{len} elements are more than any device holds")))?;
        let ranges = device.allocate(bytes)?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { device: Arc::clone(device), id, element, len, ranges }))
    }

    /// Size of the elements in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.len * self.element.size()) as usize
    }

    /// Copies elements to the device.
    ///
    /// # Errors
    ///
    /// If the device is lost. The array may then hold some of the elements.
    pub fn upload(&self, data: &[u8]) -> Result<(), GpuError> {
        self.device.upload(&self.ranges, data)
    }

    /// Copies the elements from the device.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn download(&self, data: &mut [u8]) -> Result<(), GpuError> {
        self.device.download(&self.ranges, data)
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        self.device.free(&self.ranges);
    }
}
