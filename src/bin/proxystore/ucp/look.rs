//! What UCX has on this machine, as it prints it for people.

use std::ffi::c_char;
use std::io;
use std::path::PathBuf;
use std::ptr;

use ucx_sys::*;

use super::settings::Settings;
use super::worker::{Context, Worker, check};

/// A UCX that works.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) version: Version,
    pub(crate) file: Option<PathBuf>,
    pub(crate) origin: String,
    /// `TRANSPORT/DEVICE`, of those that the settings allow.
    pub(crate) devices: Vec<String>,
    /// What each lane to a peer is, and is for.
    pub(crate) lanes: Vec<String>,
}

/// Loads UCX, makes a context, and an endpoint to a peer that is this process.
pub(crate) fn look(settings: &Settings) -> io::Result<Look> {
    let context = Context::new(settings)?;
    let ucx = context.ucx;
    // SAFETY: the context is alive.
    let printed_context = printed(|file| unsafe { ucx.ucp_context_print_info(context.handle, file) })?;
    let (here, there) = (Worker::new(&context)?, Worker::new(&context)?);
    let address = there.address()?;
    let params = ucp_ep_params_t {
        field_mask: u64::from(UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE),
        address: address.as_ptr().cast(),
        err_mode: UCP_ERR_HANDLING_MODE_PEER,
        ..Default::default()
    };
    let mut endpoint = ptr::null_mut();
    // SAFETY: the address is of a worker of this process; the endpoint goes with its own.
    check(ucx, unsafe { ucx.ucp_ep_create(here.handle, &params, &mut endpoint) })?;
    // SAFETY: just made.
    let printed_endpoint = printed(|file| unsafe { ucx.ucp_ep_print_info(endpoint, file) })?;
    Ok(Look {
        version: ucx.version(),
        file: ucx.file().map(PathBuf::from),
        origin: ucx.origin().to_string(),
        devices: devices(&printed_context),
        lanes: lanes(&printed_endpoint),
    })
}

/// What is written to a stream of the C library.
fn printed(print: impl FnOnce(*mut libc::FILE)) -> io::Result<String> {
    let (mut text, mut len): (*mut c_char, usize) = (ptr::null_mut(), 0);
    // SAFETY: the two places outlive the stream, which is closed before they are read; the text is freed once.
    unsafe {
        let file = libc::open_memstream(&mut text, &mut len);
        if file.is_null() {
            return Err(io::Error::last_os_error());
        }
        print(file);
        let closed = libc::fclose(file);
        let error = io::Error::last_os_error();
        let all = match text.is_null() {
            true => String::new(),
            false => String::from_utf8_lossy(std::slice::from_raw_parts(text.cast::<u8>(), len)).into_owned(),
        };
        libc::free(text.cast());
        if closed == 0 { Ok(all) } else { Err(error) }
    }
}

/// The last word of lines as `# resource 0 : md 0 dev 0 flags -- tcp/eth0`.
fn devices(printed: &str) -> Vec<String> {
    let lines = printed.lines().filter(|line| line.trim_start_matches(['#', ' ']).starts_with("resource"));
    lines.filter_map(|line| Some(line.split_whitespace().next_back()?.to_owned())).collect()
}

/// `tcp/lo: am wireup` of lines as `# lane[0]: 1:tcp/lo.0 md[0] -> md[0]/tcp/sysdev[255] seg 8192 am wireup`.
fn lanes(printed: &str) -> Vec<String> {
    let lane = |line: &str| {
        let rest = line.trim_start_matches(['#', ' ']).strip_prefix("lane[")?.split_once("]:")?.1;
        let (own, uses) = rest.split_once("->")?;
        let name = own.split_whitespace().next()?.split_once(':')?.1;
        let name = name.rsplit_once('.').map_or(name, |(name, _)| name);
        let mut uses = uses.split_whitespace().skip(1).peekable();
        if uses.next_if_eq(&"seg").is_some() {
            uses.next();
        }
        Some(format!("{name}: {}", uses.collect::<Vec<_>>().join(" ")))
    };
    printed.lines().filter_map(lane).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ucx_prints_is_read() {
        let context = "#\n# UCP context\n#     component 1  :  tcp\n#            md 0  :  component 1  tcp \n#\n\
                       #      resource 0  :  md 0  dev 0  flags -- tcp/eth0\n\
                       #      resource 1  :  md 0  dev 1  flags -s rc_mlx5/mlx5_0:1\n# memory: 0.26MB\n";
        assert_eq!(devices(context), ["tcp/eth0", "rc_mlx5/mlx5_0:1"]);
        let endpoint = "#               peer: <no debug data>\n\
                        #                 lane[0]:  1:tcp/lo.0 md[0]   -> md[0]/tcp/sysdev[255] seg 4294967295 am wireup\n\
                        #                 lane[1]:  2:rc_mlx5/mlx5_0:1.0 md[1]   -> md[1]/ib/sysdev[0] rma_bw#0\n";
        assert_eq!(lanes(endpoint), ["tcp/lo: am wireup", "rc_mlx5/mlx5_0:1: rma_bw#0"]);
        assert_eq!((devices("").len(), lanes("lane[0]: x -> y").len()), (0, 0));
    }
}
