//! Devices: finding and opening them, their state, and the errors that they report.

use super::arena::{Arena, Range};
use super::error::GpuError;
use super::kernels::Kernels;
use super::plan::Plans;
use super::shader::Shaders;
use super::timing::{self, Timing};
use crate::engine::process::generation;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

/// Size of the buffers through which transfers go, in bytes.
const STAGING_BYTES: u64 = 16 << 20;

/// How long a thread waits for a callback that another thread calls, before it polls itself.
const CALLBACK_DELAY: Duration = Duration::from_millis(1);

/// What the devices of this process have done, since it began.
#[derive(Default)]
pub struct Statistics {
    /// Number of submissions to queues.
    pub submissions: AtomicU64,
    /// Bytes that were copied to devices, tables and scalars included.
    pub uploaded: AtomicU64,
    /// Bytes that were copied from devices.
    pub downloaded: AtomicU64,
}

/// An adapter: a device that can be opened.
#[derive(Clone)]
pub struct Adapter {
    /// The name of the device.
    pub name: String,
    /// The interface to it: `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// The driver.
    pub driver: String,
    /// Whether the device is a program that runs on the CPU.
    pub is_software: bool,
    handle: wgpu::Adapter,
}

impl Adapter {
    fn new(handle: wgpu::Adapter) -> Self {
        let info = handle.get_info();
        Self {
            name: info.name,
            backend: info.backend.to_str().to_owned(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            is_software: info.device_type == wgpu::DeviceType::Cpu,
            handle,
        }
    }
}

/// Locks a mutex. A panic of another thread leaves no state half-changed here.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The adapters of this process, and the devices that were opened on them.
struct Opened {
    adapters: Vec<Adapter>,
    devices: Mutex<Vec<Option<Arc<Device>>>>,
    /// Kept open with the devices.
    _instance: wgpu::Instance,
}

/// Finds the adapters, once. A forked child of the process that did so gets an error before any lock is touched.
fn opened() -> Result<&'static Opened, GpuError> {
    static OPENED: OnceLock<Opened> = OnceLock::new();
    static FIRST: OnceLock<u64> = OnceLock::new();
    if *FIRST.get_or_init(generation) != generation() {
        return Err(forked());
    }
    Ok(OPENED.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        descriptor.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(descriptor);
        let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let mut adapters: Vec<_> = found.into_iter().map(Adapter::new).collect();
        // Hardware first, and among it discrete devices.
        adapters.sort_by_key(|adapter| match adapter.handle.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        });
        let devices = Mutex::new(adapters.iter().map(|_| None).collect());
        Opened { adapters, devices, _instance: instance }
    }))
}

fn forked() -> GpuError {
    GpuError::Unavailable(
        "this process was forked from one that uses a GPU, whose devices it cannot use; start processes by spawning \
         them (multiprocessing.set_start_method('spawn'))"
            .into(),
    )
}

/// Returns the adapters, hardware first.
///
/// # Errors
///
/// In a process forked from one that has used a device.
pub fn adapters() -> Result<&'static [Adapter], GpuError> {
    Ok(&opened()?.adapters)
}

/// An open device.
pub struct Device {
    /// The process that opened the device.
    generation: u64,
    /// The adapter.
    pub adapter: Adapter,
    pub(super) handle: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) limits: wgpu::Limits,
    /// Why the device is lost, once it is.
    lost: Arc<OnceLock<String>>,
    arena: Mutex<Arena>,
    pub(super) kernels: Kernels,
    pub(super) plans: Mutex<Plans>,
    /// Held from the first write of a call to its submission, as calls share tables.
    pub(super) order: Mutex<()>,
    /// A buffer for uploads and one for downloads.
    staging: Mutex<Option<[wgpu::Buffer; 2]>>,
    /// What was done on this device.
    pub statistics: Statistics,
    /// How long submissions take.
    pub timing: Timing,
    /// Shaders of the caller that were compiled so far.
    pub(super) shaders: Mutex<Shaders>,
}

impl Device {
    /// Opens the adapter at `index` of [`adapters`], or returns its device if it is open.
    ///
    /// # Errors
    ///
    /// If the driver refuses it.
    pub fn open(index: usize) -> Result<Arc<Self>, GpuError> {
        let opened = opened()?;
        let mut devices = lock(&opened.devices);
        if let Some(Some(device)) = devices.get(index) {
            return Ok(Arc::clone(device));
        }
        let adapter = opened
            .adapters
            .get(index)
            .ok_or_else(|| GpuError::Unavailable(format!("there is no adapter {index}")))?;
        let limits = adapter.handle.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("fastclip"),
            required_features: adapter.handle.features() & timing::FEATURES,
            required_limits: limits.clone(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.handle.request_device(&descriptor))
            .map_err(|error| GpuError::Unavailable(format!("{} cannot be opened: {error}", adapter.name)))?;
        let device = Arc::new(Self::new(adapter.clone(), device, queue));
        devices[index] = Some(Arc::clone(&device));
        Ok(device)
    }

    /// Uses a device and a queue that the caller has opened on an adapter, with the limits of that device. Arrays are in
    /// buffers of fastclip ([`Array::ranges`](super::array::Array)), which the caller's commands may use in the order
    /// of submission. The callbacks of the device for its loss and for errors that no scope captures are replaced.
    #[must_use]
    pub fn of_caller(adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Arc<Self> {
        Arc::new(Self::new(Adapter::new(adapter), device, queue))
    }

    /// Returns the device and the queue, for commands of the caller.
    #[must_use]
    pub fn handles(&self) -> (&wgpu::Device, &wgpu::Queue) {
        (&self.handle, &self.queue)
    }

    fn new(adapter: Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let limits = device.limits();
        let lost = Arc::new(OnceLock::new());
        let flag = Arc::clone(&lost);
        device.set_device_lost_callback(move |_, message| {
            let _ = flag.set(message);
        });
        // What no scope captures is an error of a driver between calls. The default handler panics.
        let flag = Arc::clone(&lost);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let _ = flag.set(error.to_string());
        }));
        let largest = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        Self {
            generation: generation(),
            adapter,
            handle: device,
            queue,
            limits,
            lost,
            arena: Mutex::new(Arena::new(largest)),
            kernels: Kernels::default(),
            plans: Mutex::new(Plans::default()),
            order: Mutex::new(()),
            staging: Mutex::new(None),
            statistics: Statistics::default(),
            timing: Timing::default(),
            shaders: Mutex::default(),
        }
    }

    /// Whether the device can be used by this process.
    ///
    /// # Errors
    ///
    /// If it is lost, or was opened before a fork.
    pub fn check(&self) -> Result<(), GpuError> {
        if self.generation != generation() {
            return Err(forked());
        }
        match self.lost.get() {
            Some(reason) => {
                Err(GpuError::Unavailable(format!("the device {} is lost: {reason}", self.adapter.name)))
            }
            None => Ok(()),
        }
    }

    /// Runs commands that create objects or submit, and returns the error that they cause.
    pub(super) fn scoped<T>(&self, commands: impl FnOnce() -> T) -> Result<T, GpuError> {
        self.check()?;
        let memory = self.handle.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.handle.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.handle.push_error_scope(wgpu::ErrorFilter::Validation);
        let result = commands();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        self.check()?;
        if memory.is_some() {
            return Err(GpuError::OutOfMemory(format!("the memory of {} is full", self.adapter.name)));
        }
        match validation.or(internal) {
            Some(error) => Err(GpuError::Driver(error.to_string())),
            None => Ok(result),
        }
    }

    /// Creates a buffer.
    pub(super) fn buffer(&self, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, GpuError> {
        let descriptor =
            wgpu::BufferDescriptor { label: None, size: size.max(16), usage, mapped_at_creation: false };
        self.scoped(|| self.handle.create_buffer(&descriptor)).map_err(|error| match error {
            GpuError::OutOfMemory(message) => {
                GpuError::OutOfMemory(format!("{message}: {size} bytes are needed"))
            }
            other => other,
        })
    }

    /// Allocates memory of the arena.
    pub(super) fn allocate(&self, bytes: u64) -> Result<Vec<Range>, GpuError> {
        self.check()?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let allocate = || lock(&self.arena).allocate(bytes, &|size| self.buffer(size, usage));
        match allocate() {
            Err(GpuError::OutOfMemory(_)) => {
                // The tables of past calls keep buffers alive that no array uses any more.
                self.free_cached_memory();
                allocate()
            }
            other => other,
        }
    }

    /// Returns memory to the arena. In a forked child nothing is done: the parent's locks may be held.
    pub(super) fn free(&self, ranges: &[Range]) {
        if self.generation == generation() {
            let mut arena = lock(&self.arena);
            for range in ranges {
                arena.free(range);
            }
        }
    }

    /// Releases memory that no array uses, and what past calls have left for later ones: tables and shaders.
    pub fn free_cached_memory(&self) {
        if self.generation == generation() {
            lock(&self.plans).clear();
            lock(&self.shaders).clear();
            lock(&self.arena).release_empty();
            *lock(&self.staging) = None;
            // Buffers are released when the commands that use them are done.
            let _ = self.handle.poll(wgpu::PollType::wait_indefinitely());
        }
    }

    /// Returns the bytes of the buffers that arrays lie in.
    pub fn allocated_bytes(&self) -> u64 {
        lock(&self.arena).bytes()
    }

    /// Submits commands that `record` writes.
    pub(super) fn submit(&self, record: impl FnOnce(&mut wgpu::CommandEncoder)) -> Result<(), GpuError> {
        self.scoped(|| {
            let mut encoder = self.handle.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.timing.record(&mut encoder, record);
            self.submit_finished(encoder.finish());
        })
    }

    /// Submits commands that were recorded. Called inside of [`Device::scoped`].
    fn submit_finished(&self, commands: wgpu::CommandBuffer) {
        self.statistics.submissions.fetch_add(1, Ordering::Relaxed);
        self.queue.submit([commands]);
    }

    /// Writes a small amount of data with the next submission. Called inside of [`Device::scoped`], as memory may run out.
    pub(super) fn write(&self, buffer: &wgpu::Buffer, data: &[u8]) {
        self.statistics.uploaded.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.queue.write_buffer(buffer, 0, data);
    }

    /// Waits until all that was submitted is done.
    ///
    /// # Errors
    ///
    /// If the device is lost.
    pub fn wait(&self) -> Result<(), GpuError> {
        self.check()?;
        let polled = self.handle.poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        polled.map(drop).map_err(|error| GpuError::Driver(error.to_string()))
    }

    /// Waits until a buffer is mapped.
    pub(super) fn map(&self, buffer: &wgpu::Buffer, bytes: u64, mode: wgpu::MapMode) -> Result<(), GpuError> {
        let (sender, answer) = mpsc::channel();
        buffer.slice(..bytes).map_async(mode, move |result| {
            let _ = sender.send(result.is_ok());
        });
        loop {
            let polled = self.handle.poll(wgpu::PollType::wait_indefinitely());
            self.check()?;
            polled.map_err(|error| GpuError::Driver(error.to_string()))?;
            // Another thread that polls may have taken the callback, and be about to call it.
            match answer.recv_timeout(CALLBACK_DELAY) {
                Ok(true) => return Ok(()),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                _ => return Err(GpuError::Driver("memory for a transfer cannot be mapped".into())),
            }
        }
    }

    /// Calls a function with the buffers for transfers.
    fn with_staging<T>(
        &self,
        function: impl FnOnce(&[wgpu::Buffer; 2]) -> Result<T, GpuError>,
    ) -> Result<T, GpuError> {
        self.check()?;
        let mut staging = lock(&self.staging);
        if staging.is_none() {
            use wgpu::BufferUsages as Usage;
            *staging = Some([
                self.buffer(STAGING_BYTES, Usage::MAP_WRITE | Usage::COPY_SRC)?,
                self.buffer(STAGING_BYTES, Usage::MAP_READ | Usage::COPY_DST)?,
            ]);
        }
        let result = match &*staging {
            Some(buffers) => function(buffers),
            None => Err(GpuError::Driver("there are no buffers for transfers".into())),
        };
        if result.is_err() {
            // A buffer may still be mapped.
            *staging = None;
        }
        result
    }

    /// Copies bytes to ranges, whose sizes may exceed that of the data by less than an alignment.
    pub(super) fn upload(&self, ranges: &[Range], data: &[u8]) -> Result<(), GpuError> {
        self.with_staging(|[staging, _]| {
            for piece in pieces(ranges, data.len()) {
                let part = &data[piece.data.clone()];
                self.map(staging, piece.bytes, wgpu::MapMode::Write)?;
                let mut view = staging
                    .slice(..piece.bytes)
                    .get_mapped_range_mut()
                    .map_err(|error| GpuError::Driver(error.to_string()))?;
                view.slice(..part.len()).copy_from_slice(part);
                drop(view);
                staging.unmap();
                self.scoped(|| self.copy(staging, 0, piece.buffer, piece.offset, piece.bytes))?;
                self.statistics.uploaded.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    /// Copies the memory of ranges to `data`.
    pub(super) fn download(&self, ranges: &[Range], data: &mut [u8]) -> Result<(), GpuError> {
        self.with_staging(|[_, staging]| {
            for piece in pieces(ranges, data.len()) {
                let part = &mut data[piece.data.clone()];
                self.scoped(|| self.copy(piece.buffer, piece.offset, staging, 0, piece.bytes))?;
                self.map(staging, piece.bytes, wgpu::MapMode::Read)?;
                let view = staging
                    .slice(..piece.bytes)
                    .get_mapped_range()
                    .map_err(|error| GpuError::Driver(error.to_string()))?;
                part.copy_from_slice(&view[..part.len()]);
                drop(view);
                staging.unmap();
                self.statistics.downloaded.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    /// Submits a copy between buffers.
    fn copy(&self, from: &wgpu::Buffer, from_offset: u64, to: &wgpu::Buffer, to_offset: u64, bytes: u64) {
        let mut encoder = self.handle.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(from, from_offset, to, to_offset, Some(bytes));
        self.submit_finished(encoder.finish());
    }
}

/// A part of a transfer, which the staging buffers hold.
struct Piece<'a> {
    buffer: &'a wgpu::Buffer,
    offset: u64,
    /// Bytes to copy on the device: those of `data`, rounded up to whole words.
    bytes: u64,
    /// The bytes of the host's data.
    data: std::ops::Range<usize>,
}

/// Divides a transfer of `len` bytes to or from ranges.
fn pieces(ranges: &[Range], len: usize) -> impl Iterator<Item = Piece<'_>> {
    let mut first = 0;
    ranges.iter().flat_map(move |range| {
        let start = first;
        let end = len.min(start + range.bytes as usize);
        first = end;
        (start..end).step_by(STAGING_BYTES as usize).map(move |at| {
            let data = at..end.min(at + STAGING_BYTES as usize);
            Piece {
                buffer: &range.block.buffer,
                offset: range.offset + (at - start) as u64,
                bytes: (data.len() as u64).next_multiple_of(4),
                data,
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::array::{Array, Element};
    use crate::gpu::clip::{OnNonFinite, clip};
    use crate::gpu::plan::{Change, Grouping, Key, Order, make};

    /// Opens a device as a caller would; None if there is no adapter.
    fn open() -> Option<Arc<Device>> {
        let adapter = adapters().ok()?.first()?.handle.clone();
        let descriptor = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).ok()?;
        Some(Device::of_caller(adapter, device, queue))
    }

    #[test]
    fn arrays_that_commands_of_the_caller_have_written_are_clipped() {
        let Some(device) = open() else { return };
        let arrays = [Array::new(&device, Element::F32, 2).unwrap()];
        let (handle, queue) = device.handles();
        let mut encoder = handle.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let range = &arrays[0].ranges[0];
        let gradient = handle.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 8,
            usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        queue.write_buffer(&gradient, 0, bytemuck::cast_slice(&[30.0_f32, -40.0]));
        encoder.copy_buffer_to_buffer(&gradient, 0, &range.block.buffer, range.offset, Some(8));
        queue.submit([encoder.finish()]);
        let key = Key {
            arrays: vec![arrays[0].id],
            inputs: 1,
            grouping: Grouping::Global,
            order: Order::Euclidean,
            change: Change::Scale,
        };
        let plan = make(&device, key, &[&arrays, &arrays], true).unwrap();
        let norms = clip(&device, &plan, &[5.0], OnNonFinite::Propagate).unwrap();
        assert_eq!(norms.values().unwrap(), [50.0]);
        let mut clipped = [0.0_f32; 2];
        arrays[0].download(bytemuck::cast_slice_mut(&mut clipped)).unwrap();
        assert_eq!(clipped, [3.0, -4.0]);
    }

    #[test]
    fn a_lost_device_gives_errors_and_leaves_the_data_of_the_host() {
        let Some(device) = open() else { return };
        let array = Array::new(&device, Element::F32, 4).unwrap();
        array.upload(&[1; 16]).unwrap();
        device.handle.destroy();
        let _ = device.handle.poll(wgpu::PollType::Poll);
        let mut data = [7; 16];
        assert!(matches!(array.download(&mut data), Err(GpuError::Unavailable(_))));
        assert_eq!(data, [7; 16]);
        assert!(matches!(array.upload(&[2; 16]), Err(GpuError::Unavailable(_))));
        assert!(matches!(Array::new(&device, Element::F32, 4).map(drop), Err(GpuError::Unavailable(_))));
    }

    #[test]
    fn transfers_of_any_length_return_the_same_bytes() {
        let Some(device) = open() else { return };
        for len in [0, 1, 2, 3, 255, 4097] {
            let array = Array::new(&device, Element::F16, len).unwrap();
            let data: Vec<u8> = (0..len * 2).map(|n| n as u8).collect();
            array.upload(&data).unwrap();
            let mut read = vec![0; data.len()];
            array.download(&mut read).unwrap();
            assert_eq!(read, data);
        }
    }
}
