//! `Client`: this process's attachment to a namespace.
