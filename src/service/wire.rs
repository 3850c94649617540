//! `Socket`: packets and descriptors between the processes of one user.
