# Sourced by the other scripts: makes a virtual environment with the given extras and activates it.
# FICO_VENV names its folder (default .venv), PYTHON the interpreter to make it with (default python3).

make_venv() {
  local venv="${FICO_VENV:-.venv}" extras="$1" stamp
  stamp="$venv/.installed-${extras//,/-}-$(cat pyproject.toml scripts/constraints.txt | cksum | cut -d' ' -f1)"
  if [ ! -e "$stamp" ]; then
    echo "setting up $venv"
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extras]" \
      --constraint scripts/constraints.txt
    # On all cores: pip does it on one, which is half of the time that it takes. Some packages hold files that no Python compiles.
    "$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" || true
    touch "$stamp"
  fi
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
}
