#!/usr/bin/env bash
# Build a real Caffe (BVLC with the SSD layers, CPU only) to compare with, into a cache folder.
#
#   scripts/build_caffe.sh [FOLDER]        default: ${XDG_CACHE_HOME:-~/.cache}/onnxaccel/caffe
#
# It needs Debian 12 or a like system with Python 3.11 (libboost_python is built for one Python). The result is
# FOLDER/python/caffe, FOLDER/libcaffe.so and FOLDER/venv; nothing is done when they are there.
set -euo pipefail

out=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/onnxaccel/caffe}
version=9.0.2
digest=c6410cc60bdd6db685d441b66be7df05410f8850ac88d6b75d48ef9b2315c08a
packages=(g++ protobuf-compiler libprotobuf-dev libgoogle-glog-dev libgflags-dev libboost-dev libboost-system-dev
    libboost-filesystem-dev libboost-thread-dev libboost-regex-dev libboost-python-dev libhdf5-dev libopenblas-dev
    liblmdb-dev python3-dev)

fail() {
    echo "error: $*" >&2
    exit 1
}

usable() {
    GLOG_minloglevel=2 PYTHONPATH=$out/python "$out/venv/bin/python" -c 'import caffe' 2>/dev/null
}

if [[ -f $out/ready ]]; then
    echo "real Caffe is in $out"
    exit 0
fi
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
    install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
    ((EUID == 0)) || fail "these packages are missing; run: sudo ${install[*]}"
    { apt-get update -qq && "${install[@]}"; } >/dev/null || fail "apt-get could not install ${missing[*]}"
fi

mkdir -p "$out"
work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$out/venv"
pip=("$out/venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install numpy==2.4.6 wheel setuptools protobuf scikit-image scipy six ||
    fail "pip could not install Caffe's Python packages"
"${pip[@]}" download --no-deps --no-binary :all: --no-build-isolation "brocolli-caffe==$version" -d "$work" ||
    fail "pip could not download the sources (brocolli-caffe $version)"
archive=$work/brocolli-caffe-$version.tar.gz
echo "$digest  $archive" | sha256sum --check --quiet || fail "the sources have another checksum than expected"
tar xf "$archive" -C "$work"
source=$work/brocolli-caffe-$version

mkdir -p "$work/include/caffe/proto" "$work/objects" "$out/python/caffe/proto"
proto=$source/src/caffe/proto
protoc --proto_path="$proto" --cpp_out="$work/include/caffe/proto" --python_out="$out/python/caffe/proto" caffe.proto
touch "$out/python/caffe/proto/__init__.py"
cp -r "$source"/python/caffe/*.py "$out/python/caffe/"
cp -r "$source/python/caffe/imagenet" "$out/python/caffe/" 2>/dev/null || true
sed -i 's/\.tostring()/.tobytes()/' "$out/python/caffe/io.py" # numpy 2.3 dropped tostring

headers=$("$out/venv/bin/python" -c 'import numpy, sysconfig; print("-I" + sysconfig.get_paths()["include"], "-I" + numpy.get_include())')
export CXX="g++ -O2 -DNDEBUG -fPIC -std=c++14 -w -DCPU_ONLY -DUSE_LMDB -DUSE_HDF5 -DCAFFE_VERSION=1.0.0
    -I$work/include -I$source/src -I$source/include -I/usr/include/hdf5/serial"
export OBJECTS=$work/objects
{
    find "$source/src/caffe" -name '*.cpp' -not -path '*/proto/*' -not -path '*/test/*'
    echo "$work/include/caffe/proto/caffe.pb.cc"
} | xargs -P "$(nproc)" -I{} bash -c '$CXX -c "$1" -o "$OBJECTS/$(echo "$1" | md5sum | cut -c1-16).o"' _ {} ||
    fail "the compiler failed"
libraries="-lprotobuf -lglog -lgflags -lboost_system -lboost_filesystem -lboost_thread -lboost_regex
    -lhdf5_serial_hl -lhdf5_serial -lopenblas -llmdb -lpthread"
# shellcheck disable=SC2086  # lists of options
g++ -shared -s -o "$out/libcaffe.so" "$OBJECTS"/*.o $libraries
# shellcheck disable=SC2086
$CXX $headers -shared -o "$out/python/caffe/_caffe.so" "$source/python/caffe/_caffe.cpp" "$out/libcaffe.so" \
    -Wl,-rpath,"$out" -lboost_python311 $libraries
usable || fail "Caffe was built but does not import"
touch "$out/ready"
echo "real Caffe is in $out"
