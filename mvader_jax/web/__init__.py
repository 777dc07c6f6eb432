"""The page of `mvader web`: weights as sliders. `asked`, `said`, `store` and `studio` know no server; `server` is thin."""
