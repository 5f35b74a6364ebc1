//! Element types, and macros that turn a type known at run time into one known at compile time.

/// The type of a real. A complex tensor is treated as a tensor of twice as many reals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// IEEE binary16
    F16,
    /// bfloat16: the upper half of a binary32
    BF16,
    /// IEEE binary32
    F32,
    /// IEEE binary64
    F64,
    /// 8-bit signed integer
    I8,
    /// 16-bit signed integer
    I16,
    /// 32-bit signed integer
    I32,
    /// 64-bit signed integer
    I64,
    /// 8-bit unsigned integer
    U8,
    /// 16-bit unsigned integer
    U16,
    /// 32-bit unsigned integer
    U32,
    /// 64-bit unsigned integer
    U64,
}

impl Scalar {
    /// Size in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// Whether this is a floating-point type: norms and scaling are defined for these only.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }
}

/// A type of reals in memory. Every bit pattern is a value, there is no padding, and size and alignment are at most
/// eight bytes.
pub trait Element: bytemuck::Pod + Default + Send + Sync {}

macro_rules! elements {
    ($($T:ty)*) => { $(impl Element for $T {})* };
}

elements! { half::f16 half::bf16 f32 f64 i8 i16 i32 i64 u8 u16 u32 u64 }

/// A `NumPy` dtype that fastclip accepts: one real per element, or two in a complex one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DType {
    /// Type of the element, or of the real and the imaginary part of a complex one.
    pub scalar: Scalar,
    /// Whether elements are complex numbers.
    pub complex: bool,
}

impl DType {
    /// Size of one element in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        self.scalar.size() * self.parts()
    }

    /// Number of reals in an element.
    #[must_use]
    pub const fn parts(self) -> usize {
        if self.complex { 2 } else { 1 }
    }

    /// Name of the dtype in `NumPy`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match (self.scalar, self.complex) {
            (Scalar::F32, true) => "complex64",
            (Scalar::F64, true) => "complex128",
            (Scalar::F16, _) => "float16",
            (Scalar::BF16, _) => "bfloat16",
            (Scalar::F32, _) => "float32",
            (Scalar::F64, _) => "float64",
            (Scalar::I8, _) => "int8",
            (Scalar::I16, _) => "int16",
            (Scalar::I32, _) => "int32",
            (Scalar::I64, _) => "int64",
            (Scalar::U8, _) => "uint8",
            (Scalar::U16, _) => "uint16",
            (Scalar::U32, _) => "uint32",
            (Scalar::U64, _) => "uint64",
        }
    }
}

/// Evaluates `$body`, in which `$T` is the Rust type of the floating-point [`Scalar`] `$scalar`;
/// for an integer type, evaluates `$other`. (The bindings reject integers where floats are needed.)
#[macro_export]
macro_rules! with_float {
    ($scalar:expr, $T:ident => $body:expr, else $other:expr) => {
        match $scalar {
            $crate::scalar::Scalar::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::scalar::Scalar::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::scalar::Scalar::F32 => {
                type $T = f32;
                $body
            }
            $crate::scalar::Scalar::F64 => {
                type $T = f64;
                $body
            }
            _ => $other,
        }
    };
}

/// Evaluates `$body`, in which `$T` is the Rust type of the [`Scalar`] `$scalar`.
#[macro_export]
macro_rules! with_scalar {
    ($scalar:expr, $T:ident => $body:expr) => {
        match $scalar {
            $crate::scalar::Scalar::I8 => {
                type $T = i8;
                $body
            }
            $crate::scalar::Scalar::I16 => {
                type $T = i16;
                $body
            }
            $crate::scalar::Scalar::I32 => {
                type $T = i32;
                $body
            }
            $crate::scalar::Scalar::I64 => {
                type $T = i64;
                $body
            }
            $crate::scalar::Scalar::U8 => {
                type $T = u8;
                $body
            }
            $crate::scalar::Scalar::U16 => {
                type $T = u16;
                $body
            }
            $crate::scalar::Scalar::U32 => {
                type $T = u32;
                $body
            }
            $crate::scalar::Scalar::U64 => {
                type $T = u64;
                $body
            }
            float => $crate::with_float!(float, $T => $body, else unreachable!()),
        }
    };
}
