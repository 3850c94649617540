//! Chooses how UCX is bound: loaded at run time, or linked (feature `link`); and which declarations are compiled: the
//! committed ones, or new ones (feature `bindgen`).
//!
//! Both features fall back to the default, with a warning, where the machine lacks what they need, so that a workspace
//! builds with all features anywhere. What became of them is in the metadata `DEP_UCP_MODE` and in `ucx_sys::LINKED`.

#[cfg(feature = "bindgen")]
mod declarations;

fn main() {
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rustc-check-cfg=cfg(linked)");
    println!("cargo:rustc-check-cfg=cfg(regenerated)");
    println!("cargo:rerun-if-env-changed=DOCS_RS");
    // There is neither UCX nor a network where the documentation is built.
    let linked = std::env::var_os("DOCS_RS").is_none() && link();
    if std::env::var_os("DOCS_RS").is_none() {
        regenerate();
    }
    if linked {
        println!("cargo:rustc-cfg=linked");
    }
    println!("cargo:mode={}", if linked { "linked" } else { "loaded" });
}

#[cfg(feature = "link")]
fn link() -> bool {
    match pkg_config::Config::new().atleast_version("1.12").probe("ucx") {
        Ok(found) => {
            println!("cargo:version={}", found.version);
            // For the build scripts of dependents, which alone can give their programs a run path.
            for directory in found.link_paths {
                println!("cargo:libdir={}", directory.display());
            }
            true
        }
        Err(error) => {
            let error = error.to_string();
            let first = error.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
            println!(
                "cargo:warning=feature `link`: no UCX 1.12 or newer by pkg-config, so one is loaded at run time ({first})"
            );
            false
        }
    }
}

#[cfg(not(feature = "link"))]
fn link() -> bool {
    false
}

#[cfg(feature = "bindgen")]
fn regenerate() {
    match declarations::generate() {
        Ok(()) => println!("cargo:rustc-cfg=regenerated"),
        Err(error) => println!("cargo:warning=feature `bindgen`: the committed declarations are used ({error})"),
    }
}

#[cfg(not(feature = "bindgen"))]
fn regenerate() {}
