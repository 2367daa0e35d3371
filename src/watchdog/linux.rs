//! The kernel's device, and the file or pipe that tests put in its place. (CFG-146, CFG-148)

use crate::watchdog::{Device, Driver, DriverKind, Settings};
use rustix::fs::{Access, access};
use rustix::ioctl::{Getter, Updater, ioctl, opcode};
use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What the kernel says of a device (`struct watchdog_info` of linux/watchdog.h).
#[repr(C)]
struct Info {
    options: u32,
    _firmware: u32,
    _identity: [u8; 32],
}

const GET_SUPPORT: u32 = opcode::read::<Info>(b'W', 0);
const SET_TIMEOUT: u32 = opcode::read_write::<c_int>(b'W', 6);
const GET_TIMEOUT: u32 = opcode::read::<c_int>(b'W', 7);
const CAN_SET_TIMEOUT: u32 = 0x0080;
const CAN_CLOSE: u32 = 0x0100;

/// Opens what `watchdog.device` names.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxDriver;

impl Driver for LinuxDriver {
    fn open(&self, settings: &Settings) -> Result<Box<dyn Device>, String> {
        let path = settings.device.display();
        let file = OpenOptions::new()
            .write(true)
            // A pipe that nobody reads must not hold up a promotion.
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(&settings.device)
            .map_err(|why| format!("{path}: {why}"))?;
        match settings.driver {
            DriverKind::Testing => Ok(Box::new(Testing { file, timeout: 60 })),
            DriverKind::Linux => match Kernel::support(&file) {
                Ok(options) => Ok(Box::new(Kernel { file, options })),
                Err(why) => {
                    // It counts since it was opened.
                    let _ = (&file).write_all(b"V");
                    Err(format!("{path} is no watchdog device: {why}"))
                }
            },
        }
    }

    fn unusable(&self, settings: &Settings) -> Option<String> {
        let path = &settings.device;
        access(path, Access::WRITE_OK).err().map(|why| format!("{}: {why}", path.display()))
    }

    /// The kernel says so in `/sys`, where it was built to.
    fn counts_on(&self, settings: &Settings) -> bool {
        match settings.driver {
            DriverKind::Testing => false,
            DriverKind::Linux => state_of(&settings.device).is_some_and(|state| state == "active"),
        }
    }
}

/// `/dev/watchdog` is the first of them under its old number, of which `/sys` has no state.
const FIRST: (u32, u32) = (10, 130);

/// `active` or `inactive`; `None`: the device or the kernel does not say.
fn state_of(device: &Path) -> Option<String> {
    let number = rustix::fs::stat(device).ok()?.st_rdev;
    let number = (rustix::fs::major(number), rustix::fs::minor(number));
    let path = if number == FIRST {
        "/sys/class/watchdog/watchdog0/state".to_owned()
    } else {
        format!("/sys/dev/char/{}:{}/state", number.0, number.1)
    };
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

struct Kernel {
    file: File,
    options: u32,
}

impl Kernel {
    fn support(file: &File) -> Result<u32, String> {
        // SAFETY: WDIOC_GETSUPPORT writes one `struct watchdog_info`, which `Info` lays out.
        let info: Info = unsafe { ioctl(file, Getter::<GET_SUPPORT, Info>::new()) }
            .map_err(|why| why.to_string())?;
        Ok(info.options)
    }
}

impl Device for Kernel {
    fn timeout(&mut self) -> Result<u32, String> {
        // SAFETY: WDIOC_GETTIMEOUT writes one int.
        let seconds: c_int = unsafe { ioctl(&self.file, Getter::<GET_TIMEOUT, c_int>::new()) }
            .map_err(|why| format!("its timeout is not known: {why}"))?;
        u32::try_from(seconds).map_err(|_| format!("its timeout is {seconds} s"))
    }

    fn set_timeout(&mut self, seconds: u32) -> Result<(), String> {
        if self.options & CAN_SET_TIMEOUT == 0 {
            return Err("its timeout cannot be set".to_owned());
        }
        let mut seconds = c_int::try_from(seconds).map_err(|why| why.to_string())?;
        // SAFETY: WDIOC_SETTIMEOUT reads one int and writes back what it made of it.
        unsafe { ioctl(&self.file, Updater::<SET_TIMEOUT, c_int>::new(&mut seconds)) }
            .map_err(|why| format!("its timeout cannot be set: {why}"))
    }

    fn can_be_disabled(&self) -> bool {
        self.options & CAN_CLOSE != 0
    }

    fn keep_alive(&mut self) -> Result<(), String> {
        self.file.write_all(b"1").map_err(|why| why.to_string())
    }

    fn disable(mut self: Box<Self>) -> Result<(), String> {
        self.file.write_all(b"V").map_err(|why| why.to_string())
    }
}

/// Somebody who reads a pipe.
struct Testing {
    file: File,
    timeout: u32,
}

impl Device for Testing {
    fn timeout(&mut self) -> Result<u32, String> {
        Ok(self.timeout)
    }

    fn set_timeout(&mut self, seconds: u32) -> Result<(), String> {
        let line = format!("Ctimeout={seconds}\n");
        self.file.write_all(line.as_bytes()).map_err(|why| why.to_string())?;
        self.timeout = seconds;
        Ok(())
    }

    fn can_be_disabled(&self) -> bool {
        true
    }

    fn keep_alive(&mut self) -> Result<(), String> {
        self.file.write_all(b"1").map_err(|why| why.to_string())
    }

    fn disable(mut self: Box<Self>) -> Result<(), String> {
        self.file.write_all(b"V").map_err(|why| why.to_string())
    }
}
