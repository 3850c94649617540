//! The network: adapters of this node, native libraries that could use them, and why one is not used.

use std::path::Path;

use serde::Serialize;

pub(super) struct Fabrics {
    pub(super) libraries: Vec<Library>,
    /// As the kernel names them, each behind its kind: `cxi cxi0`, `infiniband mlx5_0`.
    pub(super) adapters: Vec<String>,
    pub(super) advice: Vec<String>,
}

/// A library that a connector loads at run time.
#[derive(Default, Serialize)]
pub(super) struct Library {
    name: &'static str,
    version: Option<String>,
    file: Option<String>,
    found_by: Option<String>,
    /// Why there is none, or why it does not work.
    error: Option<String>,
    /// What it can use here: `TRANSPORT/DEVICE`.
    devices: Vec<String>,
    /// What it would use to a peer on a node like this one, and for what.
    to_a_peer: Vec<String>,
    /// Whether `one_sided=auto` would read memory of other nodes, and by what, or why not.
    one_sided: Option<String>,
    /// Variables of its own that are set.
    variables: Vec<String>,
}

impl Fabrics {
    /// Looks without leaving anything; loads the libraries.
    pub(super) fn collect() -> Self {
        let adapters = adapters(Path::new("/sys/class"));
        let libraries = libraries();
        let mut advice = advice(&adapters, &libraries);
        advice.extend(trust(&libraries));
        Self { libraries, adapters, advice }
    }
}

impl Library {
    /// Name and value of each, for people.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        if let Some(version) = &self.version {
            let file = self.file.as_deref().unwrap_or("an unknown file");
            lines.push((self.name, format!("{version}, {file}, by {}", self.found_by.as_deref().unwrap_or("chance"))));
            lines.push(("  devices", self.devices.join(" ")));
            lines.extend(self.to_a_peer.iter().map(|lane| ("  to a peer", lane.clone())));
            lines.extend(self.one_sided.iter().map(|said| ("  one-sided get", said.clone())));
        }
        lines.extend(self.error.iter().map(|error| (self.name, error.clone())));
        lines.extend(self.variables.iter().map(|variable| ("  set", variable.clone())));
        lines
    }
}

fn libraries() -> Vec<Library> {
    ucx().into_iter().chain(margo()).collect()
}

#[cfg(feature = "margo")]
fn margo() -> Option<Library> {
    let library = Library { name: "margo", ..Library::default() };
    Some(match margo_sys::load() {
        Ok(margo) => {
            let device = |one: margo_sys::Protocol| match one.device.is_empty() {
                true => one.to_string(),
                false => format!("{one}/{}", one.device),
            };
            Library {
                version: Some(format!("with Mercury {}", margo.mercury_version())),
                file: margo.file().map(|file| file.display().to_string()),
                found_by: Some(margo.origin().to_string()),
                devices: margo.protocols().unwrap_or_default().into_iter().map(device).collect(),
                to_a_peer: margo.preferred().map(str::to_owned).into_iter().collect(),
                ..library
            }
        }
        Err(error) => Library { error: Some(error.to_string()), ..library },
    })
}

#[cfg(not(feature = "margo"))]
fn margo() -> Option<Library> {
    None
}

#[cfg(feature = "ucx")]
fn ucx() -> Option<Library> {
    let found = crate::ucp::Settings::of_this_node().map_err(|error| error.to_string());
    let found = found.and_then(|settings| crate::ucp::look(&settings).map_err(|error| error.to_string()));
    let mut variables: Vec<String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .filter(|(name, _)| name.starts_with("UCX_"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    variables.sort();
    let library = Library { name: "ucx", variables, ..Library::default() };
    Some(match found {
        Ok(look) => Library {
            version: Some(look.version.to_string()),
            file: look.file.map(|file| file.display().to_string()),
            found_by: Some(look.origin),
            devices: look.devices,
            to_a_peer: look.lanes,
            one_sided: Some(match proxystore::connectors::ucx::one_sided() {
                Ok(transports) => format!("works here by {transports}; used with one_sided=auto in the URL"),
                Err(error) => format!("not used: {}", error.context()),
            }),
            ..library
        },
        Err(error) => Library { error: Some(error), ..library },
    })
}

#[cfg(not(feature = "ucx"))]
fn ucx() -> Option<Library> {
    None
}

/// What the kernel has beyond Ethernet, by its classes of devices.
fn adapters(classes: &Path) -> Vec<String> {
    let mut found: Vec<String> = ["cxi", "infiniband"]
        .iter()
        .flat_map(|class| {
            let entries = std::fs::read_dir(classes.join(class)).into_iter().flatten().flatten();
            entries.map(move |entry| format!("{class} {}", entry.file_name().to_string_lossy()))
        })
        .collect();
    found.sort();
    found
}

/// Why what is fastest here is not used, and what to do about it.
fn advice(adapters: &[String], libraries: &[Library]) -> Vec<String> {
    let mut advice = Vec::new();
    let library = |name: &str| libraries.iter().find(|library| library.name == name);
    let Some(ucx) = library("ucx") else {
        match library("margo") {
            Some(margo) => advice.extend(adapters.iter().filter_map(|adapter| of_margo(adapter, margo))),
            None if adapters.is_empty() => {}
            None => advice.push(
                "this build has neither UCX nor Margo, so objects go over TCP: enable the cargo feature \"ucx\""
                    .to_owned(),
            ),
        }
        return advice;
    };
    let named = |class: &str| adapters.iter().find_map(|adapter| adapter.strip_prefix(class)?.strip_prefix(' '));
    let uses_hardware = ucx.devices.iter().any(|device| HARDWARE.iter().any(|prefix| device.starts_with(prefix)));
    if named("cxi").is_some() {
        advice.push("this node has cxi; UCX will use tcp: use margo with ofi+cxi".to_owned());
    }
    match named("infiniband") {
        Some(adapter) if ucx.version.is_none() => {
            advice
                .push(format!("this node has {adapter}, which UCX could use, and no usable UCX: objects go over TCP"));
        }
        Some(adapter) if !uses_hardware => {
            let reason = match ucx.variables.iter().find(|variable| variable.starts_with("UCX_TLS=")) {
                Some(variable) => format!("because of {variable}"),
                None => "it was built without (the wheel libucx-cu12 is), or may not open the device".to_owned(),
            };
            advice.push(format!("this node has {adapter}; UCX will use tcp: {reason}"));
        }
        _ => {}
    }
    if uses_hardware {
        advice.extend(memlock(rustix::process::getrlimit(rustix::process::Resource::Memlock).current));
    }
    advice
}

/// Why Margo does not use an adapter in a build that has no UCX.
fn of_margo(adapter: &str, margo: &Library) -> Option<String> {
    let (class, device) = adapter.split_once(' ')?;
    let protocol = if class == "cxi" { "ofi+cxi" } else { "ofi+verbs" };
    if margo.version.is_none() {
        return Some(format!(
            "this node has {device}, which Margo could use, and no usable Margo: objects go over TCP"
        ));
    }
    let is_offered = margo.devices.iter().any(|offered| offered.starts_with(protocol));
    (!is_offered).then(|| {
        format!("this node has {device}, and Margo's Mercury does not offer {protocol}: its libfabric lacks it")
    })
}

/// What UCX's TCP transport lets strangers do.
#[cfg(feature = "ucx")]
fn trust(libraries: &[Library]) -> Option<String> {
    let ucx = libraries.iter().find(|library| library.name == "ucx")?;
    let (who, where_) = match proxystore::connectors::ucx::is_guarded() {
        false => ("anybody who reaches it", "strangers are on the network"),
        true => ("anybody on the job's hosts", "nodes are shared with other users"),
    };
    let said = format!(
        "ucx:// uses UCX's TCP, at whose port {who} can write memory of the process: where {where_} use tcp://, or UCX_TLS without \
         tcp; docs/ucx.md, Trust"
    );
    ucx.devices.iter().any(|device| device.starts_with("tcp/")).then_some(said)
}

#[cfg(not(feature = "ucx"))]
fn trust(_: &[Library]) -> Option<String> {
    None
}

/// What an adapter registers is locked.
fn memlock(limit: Option<u64>) -> Option<String> {
    let limit = limit.filter(|bytes| *bytes < 1 << 40)?;
    Some(format!("objects are registered with the adapter, and {limit} bytes may be locked: set `ulimit -l unlimited`"))
}

/// What transports begin with that are done by an adapter.
const HARDWARE: [&str; 5] = ["rc_", "dc_", "ud_", "srd", "gga"];

#[cfg(test)]
mod tests {
    use super::*;

    fn ucx(devices: &[&str], variables: &[&str]) -> Vec<Library> {
        let owned = |all: &[&str]| all.iter().map(|text| text.to_string()).collect();
        let (devices, variables) = (owned(devices), owned(variables));
        vec![Library { name: "ucx", version: Some("1.13.1".to_owned()), devices, variables, ..Library::default() }]
    }

    #[test]
    fn what_is_not_used_is_explained() {
        let none: &[String] = &[];
        let [cxi, mlx] = ["cxi cxi0", "infiniband mlx5_0"].map(str::to_owned);
        assert_eq!(advice(none, &ucx(&["tcp/eth0"], &[])), none);
        assert_eq!(advice(none, &[]), none);
        for (adapters, libraries, part) in [
            (&cxi, ucx(&["tcp/hsn0"], &[]), "this node has cxi; UCX will use tcp: use margo with ofi+cxi"),
            (&mlx, ucx(&["tcp/ib0"], &[]), "built without"),
            (&mlx, ucx(&["tcp/ib0"], &["UCX_TLS=tcp"]), "because of UCX_TLS=tcp"),
            (&mlx, vec![Library { name: "ucx", ..Library::default() }], "no usable UCX"),
            (&mlx, Vec::new(), "cargo feature \"ucx\""),
        ] {
            let said = advice(std::slice::from_ref(adapters), &libraries);
            assert!(said.len() == 1 && said[0].contains(part), "{adapters}, {part}: {said:?}");
        }
        let margo = |version: Option<&str>, devices: &[&str]| Library {
            name: "margo",
            version: version.map(str::to_owned),
            devices: devices.iter().map(|device| device.to_string()).collect(),
            ..Library::default()
        };
        for (adapter, library, part) in [
            (&cxi, margo(None, &[]), Some("no usable Margo")),
            (&cxi, margo(Some("with Mercury 2.4.1"), &["ofi+tcp/hsn0"]), Some("does not offer ofi+cxi")),
            (&cxi, margo(Some("with Mercury 2.4.1"), &["ofi+cxi/cxi0"]), None),
            (&mlx, margo(Some("with Mercury 2.4.1"), &["ofi+cxi/cxi0"]), Some("does not offer ofi+verbs")),
        ] {
            let said = advice(std::slice::from_ref(adapter), &[library]);
            assert!(said.iter().all(|line| part.is_some_and(|part| line.contains(part))), "{said:?}");
            assert_eq!(said.len(), usize::from(part.is_some()), "{adapter}");
        }
        let said = advice(&[mlx], &ucx(&["tcp/ib0", "rc_mlx5/mlx5_0:1"], &[]));
        assert!(said.iter().all(|line| line.contains("ulimit")), "{said:?}");
        let speaks = cfg!(feature = "ucx");
        assert!(
            trust(&ucx(&["tcp/ib0"], &[])).is_some() == speaks && trust(&ucx(&["rc_mlx5/mlx5_0:1"], &[])).is_none()
        );
        assert!(trust(&[]).is_none());
        assert!(memlock(Some(8 << 20)).is_some_and(|line| line.contains("8388608")) && memlock(None).is_none());
    }

    #[test]
    fn adapters_are_what_the_kernel_has() {
        let directory = std::env::temp_dir().join(format!("proxystore-adapters-{}", std::process::id()));
        for path in ["infiniband/mlx5_1", "infiniband/mlx5_0", "cxi/cxi0", "net/eth0"] {
            std::fs::create_dir_all(directory.join(path)).unwrap();
        }
        assert_eq!(adapters(&directory), ["cxi cxi0", "infiniband mlx5_0", "infiniband mlx5_1"]);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(adapters(&directory), [""; 0]);
    }
}
