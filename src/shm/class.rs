//! Size classes: the capacities that cells of the arena have.
