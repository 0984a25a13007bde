#!/bin/sh
# Adds to each image of .env.example, of .env if there is one, and of the Dockerfile the digest that its
# tag has in its registry now. From then on an image is that one, whatever becomes of the tag.
set -eu
cd "$(dirname "$0")"
files=".env.example Dockerfile"
[ ! -f .env ] || files="$files .env"
for file in $files; do
  sed -n 's/^\(ARG \)\{0,1\}\([A-Z]*_IMAGE\)=//p' "$file"
done | sort -u | while read -r image; do
  tag=${image%@*}
  digest=$(docker buildx imagetools inspect "$tag" --format '{{.Manifest.Digest}}')
  if ! printf %s "$digest" | grep -Eqx 'sha256:[0-9a-f]{64}'; then
    echo "error: the registry gives no digest of $tag, but '$digest'; nothing more was changed" >&2
    exit 1
  fi
  for file in $files; do
    # Written into the file that is there: .env stays its owner's alone.
    new=$(sed "s|_IMAGE=$image\$|_IMAGE=$tag@$digest|" "$file")
    printf '%s\n' "$new" > "$file"
  done
  echo "$tag@$digest"
done
